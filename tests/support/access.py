"""Access times of files: setting them, reading them, and whether this place keeps them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from pathlib import Path

#: Before every change of a file, so that relatime notes the next read.
LONG_AGO_NS: Final = 1_400_000_000_000_000_001


def last_read(path: Path) -> int:
    """When a file was read last, in nanoseconds since 1970."""
    return path.stat().st_atime_ns


def never_read_since(path: Path, moment_ns: int) -> None:
    """Let a file have been read last at some moment; its time of change stays."""
    os.utime(path, ns=(moment_ns, path.stat().st_mtime_ns))


def require_access_times(folder: Path) -> None:
    """Skip the test where reading a file leaves no trace (a mount with noatime)."""
    probe = folder / ".probe"
    probe.write_bytes(b"x")
    never_read_since(probe, LONG_AGO_NS)
    probe.read_bytes()
    kept = last_read(probe) > LONG_AGO_NS
    probe.unlink()
    if not kept:
        pytest.skip("mounted with noatime")
