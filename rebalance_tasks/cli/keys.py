"""Single keys from a terminal, without waiting for Enter."""

from __future__ import annotations

import os
import selectors
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def pressed_keys() -> Iterator[Callable[[float], str]]:
    """Yield a function that waits so many seconds for a key, and returns it, or '' when none came.

    Where standard input is no terminal (a pipe, a service) it only waits. The terminal is put back at the end.
    """
    try:
        import termios  # noqa: PLC0415  not on every system
        import tty  # noqa: PLC0415
    except ImportError:
        yield _wait
        return
    if not sys.stdin.isatty():
        yield _wait
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    waiting = selectors.DefaultSelector()
    waiting.register(descriptor, selectors.EVENT_READ)

    def key(timeout_s: float) -> str:
        return os.read(descriptor, 16).decode("utf-8", "replace")[:1] if waiting.select(timeout_s) else ""

    try:
        tty.setcbreak(descriptor)
        yield key
    finally:
        waiting.close()
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _wait(timeout_s: float) -> str:
    time.sleep(timeout_s)
    return ""
