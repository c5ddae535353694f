"""Sets the wall clocks of processes that a test starts, without being root: each has a file that says how wrong its clock is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

#: Holds the `sitecustomize` that does it, in each process that finds it on its path.
SHIM: Final = Path(__file__).with_name("clock_shim")


def environment(file: Path) -> dict[str, str]:
    """What a process is started with whose clock goes by a file."""
    path = os.pathsep.join(filter(None, [str(SHIM), os.environ.get("PYTHONPATH", "")]))
    return {"TEST_CLOCK": str(file), "PYTHONPATH": path}


def set_offset(file: Path, offset_s: float) -> None:
    """Let the clocks that go by a file be ahead by so many seconds, half a second from now at the latest."""
    fresh = file.with_suffix(".fresh")
    fresh.write_text(str(offset_s), encoding="utf-8")
    fresh.replace(file)
