"""Which code places keys: NumPy, always there, or numba's machine code (extra ``fast``), imported only when it pays.

Both give the same result bit for bit, so the choice is one of time: loading numba takes about a second, after which it
is several times as fast. Threads live for one call and end with it; nothing of theirs is left over a fork, so Celery's
prefork workers may place keys before and after they fork.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, assert_never, get_args

from rebalance_tasks.core.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

#: ``auto``: numba where it is installed and there is enough to do, else NumPy. The others are taken at their word.
KernelName: TypeAlias = Literal["auto", "numpy", "numba"]

#: Keys in one call from which ``auto`` loads numba; NumPy places so many in the second or so that loading takes.
WORTH_LOADING_KEYS: Final = 200_000
#: Single calls on one compiled fleet after which ``auto`` loads numba: who asks so often will ask again.
WORTH_LOADING_CALLS: Final = 1_000
#: Keys a thread takes at a time: some milliseconds of work, so that threads come to an end together.
_SHARE_KEYS: Final = 1 << 15


def compiled_kernels(kernel: KernelName, *, worth_loading: bool) -> ModuleType | None:
    """Return the compiled kernels, or None where NumPy is to be used.

    Args:
        kernel: what was asked for.
        worth_loading: whether ``auto`` may load numba now; once loaded, it is used in any case.

    Raises:
        InvalidArgument: numba was asked for and cannot be imported.
    """
    if kernel == "numpy":
        return None
    if kernel == "auto":
        return _load()[0] if worth_loading or _load.cache_info().currsize else None
    if kernel == "numba":
        module, why_not = _load()
        if module is None:
            msg = f"kernel: numba cannot be used ({why_not}); install it with pip install 'rebalance-tasks[fast]'"
            raise InvalidArgument(msg)
        return module
    assert_never(kernel)


def check_kernel(kernel: str) -> None:
    """Refuse an unknown kernel. Raises: InvalidArgument."""
    if kernel not in get_args(KernelName):
        msg = f"kernel: {kernel!r} is none of {', '.join(get_args(KernelName))}"
        raise InvalidArgument(msg)


@cache
def _load() -> tuple[ModuleType | None, str]:
    """Import numba once; it may be missing, or too old for this NumPy."""
    try:
        return import_module("rebalance_tasks.core.placement.kernels_numba"), ""
    except ImportError as exc:
        return None, str(exc)


def check_threads(threads: int | None) -> None:
    """Refuse an impossible number of threads. Raises: InvalidArgument."""
    if threads is not None and threads < 1:
        msg = f"threads: {threads} must be at least 1, or None for as many as there are processors"
        raise InvalidArgument(msg)


def in_threads(work: Callable[[slice], None], keys: int, threads: int) -> None:
    """Do work on parts of so many keys, in threads of this call's own; what one raises is raised."""
    shares = [slice(start, start + _SHARE_KEYS) for start in range(0, keys, _SHARE_KEYS)]
    if threads == 1 or len(shares) < 2:  # noqa: PLR2004  nothing to share
        for share in shares:
            work(share)
        return
    with ThreadPoolExecutor(min(threads, len(shares)), thread_name_prefix="placement") as pool:
        for _ in pool.map(work, shares):
            pass
