"""Ctrl-C (or a terminal that closes, or ``kill``) at any moment: one exception, then a clean-up that cannot be torn.

The first signal raises `Interrupted` in the main thread. From then on, and during every clean-up, further signals raise
nothing: they only say "hurry", upon which processes are killed instead of asked.
"""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from types import FrameType, TracebackType

HANDLED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """Someone wants the demo to end; like KeyboardInterrupt not an `Exception`, so that nothing swallows it."""

    def __init__(self, signum: int) -> None:
        """Keep which signal it was."""
        super().__init__(signum)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """What a shell expects (130 for Ctrl-C)."""
        return 128 + self.signum


class Signals:
    """Handles the signals while it is entered (in the main thread; elsewhere it does nothing).

    Attributes:
        hurry: a signal came during the clean-up.
    """

    def __init__(self) -> None:
        """Handle nothing yet."""
        self.hurry = threading.Event()
        self._closing = False
        self._pending: int | None = None
        self._before: dict[int, Any] = {}

    def shield(self) -> None:
        """From here on a clean-up runs: signals no longer raise."""
        self._closing = True

    def check(self) -> None:
        """Raise again what a callback or a finaliser may have swallowed."""
        if self._pending is not None:
            raise Interrupted(self._pending)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        del frame
        if self._closing:
            self.hurry.set()
            return
        self._closing = True
        self._pending = signum
        raise Interrupted(signum)

    def __enter__(self) -> Self:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._handle) for signum in HANDLED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put back what was there."""
        for signum, before in self._before.items():
            signal.signal(signum, before)
