"""Functions compiled by numba, kept on disk where that works.

numba keeps machine code beside the module that defines a function, else in the user's cache (``NUMBA_CACHE_DIR`` says
otherwise), keyed by the content of **that one file** and by the processor. So everything that is compiled into a kernel,
constants too, stands in the kernel's own file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

from numba import njit

if TYPE_CHECKING:
    from collections.abc import Callable

_F = TypeVar("_F", bound="Callable[..., Any]")


class Kernel:
    """A compiled function that always runs: from the cache where there is a good one, else compiled into memory.

    numba raises when it finds no place to write, when the disk is full, and when a cached file is cut short; none of
    that is a reason not to place an object.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        """Prepare; machine code is loaded or made at the first call (all calls have arguments of the same types)."""
        self._function = function
        self._proven = False
        try:
            self._dispatcher: Any = njit(function, nogil=True, cache=True)
        except RuntimeError:  # neither beside the module nor in the user's cache
            self._dispatcher = njit(function, nogil=True)

    def __call__(self, *arguments: object) -> None:
        """Run. The output array is written by complete runs only, so a second one after a bad cache is harmless."""
        if self._proven:
            self._dispatcher(*arguments)
            return
        try:
            self._dispatcher(*arguments)
        except Exception:  # noqa: BLE001  whatever a broken cache can raise; what is wrong elsewhere is raised again
            self._dispatcher = njit(self._function, nogil=True)
            self._dispatcher(*arguments)
        self._proven = True


def inlined(function: _F) -> _F:
    """Let a function be called from kernels, as a part of them."""
    return cast("_F", njit(function, inline="always"))
