"""Waiting for a condition instead of sleeping and hoping."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def wait_until(predicate: Callable[[], T | None], timeout_s: float, what: str, *, interval_s: float = 0.02) -> T:
    """Poll until the predicate returns something true, and return it.

    Raises:
        AssertionError: it did not in time; the message says what was awaited and what the predicate last returned.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= deadline:
            msg = f"waited {timeout_s:g} s in vain until {what} (last: {value!r})"
            raise AssertionError(msg)
        time.sleep(interval_s)
