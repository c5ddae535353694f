"""Whether machine code (extra ``fast``) carries plain small objects between two local roots; else Python does, with the same results.

Loading it takes a process half a second or so once, and spares some 40 µs an object from then on. So it is loaded when a process has
carried so many objects that it would have paid by now, and kept.
"""

from __future__ import annotations

import threading
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.placement.kernels import compiled_kernels
from rebalance_tasks.drivers.local.linux import native

if TYPE_CHECKING:
    from types import ModuleType

    from rebalance_tasks.drivers.local.tree import LocalTree

#: Objects that a process carries in Python before it loads machine code.
WORTH_LOADING_OBJECTS: Final = 8_192


class _Carried:
    """How many objects this process was asked to carry between local roots; for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects = 0

    def add(self, objects: int) -> int:
        with self._lock:
            self._objects += objects
            return self._objects


_carried: Final = _Carried()


def compiled_rows(source: LocalTree, target: LocalTree, *, objects: int) -> ModuleType | None:
    """Return `plain_rows` if it is to carry so many more objects between these roots.

    It stands on Linux' own calls, so that it is for roots that do, too, with a target that is synced as a whole.
    """
    calls = native()
    if objects < 2 or not source.calls is target.calls is calls or calls.syncfs is None:  # noqa: PLR2004  one is no batch
        return None
    if _carried.add(objects) <= WORTH_LOADING_OBJECTS or compiled_kernels("auto", worth_loading=True) is None:
        return None
    return _load()


@cache
def _load() -> ModuleType | None:
    try:
        return import_module("rebalance_tasks.drivers.local.plain_rows")
    except ImportError:  # a C library without one of the calls
        return None
