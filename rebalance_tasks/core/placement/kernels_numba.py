"""The compiled kernels (extra ``fast``), as `kernels` hands them out; importing this imports numba.

Nothing here starts a thread or takes one of numba's parallel layers, of which one aborts after a fork: whoever wants threads
calls a kernel from several (`kernels.in_threads`), since none holds the GIL.
"""

from __future__ import annotations

from typing import Final

from numba import config

from rebalance_tasks.core.placement.kernel_place import place_flat, place_tree
from rebalance_tasks.core.placement.kernel_xxh3 import LONGEST_KEY, hash_many

__all__ = ["DEFAULT_THREADS", "LONGEST_KEY", "hash_many", "place_flat", "place_tree"]

#: Threads to use unless told otherwise: the processors this process may run on, or ``NUMBA_NUM_THREADS``.
DEFAULT_THREADS: Final[int] = getattr(config, "NUMBA_NUM_THREADS")  # noqa: B009  numba sets it by its name
