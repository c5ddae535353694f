"""A solver that prints nothing: from its 1.16 on HiGHS says its name when it is made, into whatever a benchmark's case prints."""

from __future__ import annotations

import highspy


class SilentSolver(highspy.Highs):
    """HiGHS on one thread, without its banner."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.setOptionValue("threads", 1)

    def enableCallbacks(self) -> None:  # noqa: N802  the library's name; its constructor calls it and prints there
        """Be silent first."""
        self.silent()
        super().enableCallbacks()  # type: ignore[no-untyped-call]
