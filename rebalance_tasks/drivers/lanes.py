"""Several objects at once where each waits for a round trip or a disk: threads that stay, one list of things to do, errors that stop the rest.

Both the engine (its steps over a batch) and drivers (requests of one step) share the threads of a process; nothing that runs on
one of them may wait for another.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")
D = TypeVar("D")

#: More requests at once made nothing faster on two cores.
MOST_AT_ONCE: Final = 16


def rest_of(pairs: Iterable[tuple[T, D]], act: Callable[[tuple[T, D]], object]) -> Iterator[tuple[T, D]]:
    """Act at once on pairs whose second part says that the costly step is done; yield the others, to be spread over threads by `each`."""
    for pair in pairs:
        if pair[1]:
            act(pair)
        else:
            yield pair


def each(items: Iterable[T], act: Callable[[T], object], *, at_once: int) -> None:
    """Do something with each item, some of them at once; after an error no further one is begun.

    Args:
        items: with what; taken one by one when it is one at once, all of them first otherwise.
        act: what to do; it settles what is wrong with one object itself.
        at_once: how many threads; 1 is the caller's own.
    """
    if at_once == 1:
        for item in items:
            act(item)
        return
    pending = deque(items)
    count = min(at_once, len(pending))

    def run() -> None:
        while pending:
            try:
                item = pending.popleft()
            except IndexError:  # another one was quicker
                return
            try:
                act(item)
            except BaseException:
                pending.clear()
                raise

    if count <= 1:
        run()
        return
    pool = _pool(os.getpid())
    futures = [pool.submit(run) for _ in range(count)]
    wait(futures)
    for future in futures:
        future.result()


@cache
def _pool(_pid: int) -> ThreadPoolExecutor:
    """Threads that stay, since each has a connection to Redis of its own; a fork has none of its parent's."""
    return ThreadPoolExecutor(MOST_AT_ONCE, thread_name_prefix="rebalance-lane")
