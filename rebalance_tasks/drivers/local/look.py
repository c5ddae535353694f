"""A look at many objects of a local root: each folder is opened once, by its path, and its names are looked up in it."""

from __future__ import annotations

import os
import stat as st_modes
from typing import TYPE_CHECKING

import numpy as np

from rebalance_tasks.drivers.looks import UNSEEN

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from rebalance_tasks.drivers.local.tree import LocalTree


def look_at(tree: LocalTree, keys: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """See `drivers.looks.LooksAtMany.look_at`."""
    sizes, times = [UNSEEN] * len(keys), [0] * len(keys)
    by_folder: dict[str, list[tuple[int, str]]] = {}
    for place, key in enumerate(keys):
        folder, _, name = key.rpartition("/")
        by_folder.setdefault(folder, []).append((place, name))
    for folder, names in by_folder.items():
        try:
            fd = tree.open_folder(folder or ".")
        except OSError:
            continue
        try:
            _look(names, fd, sizes, times)
        finally:
            os.close(fd)
    return np.array(sizes, np.int64), np.array(times, np.int64)


def _look(names: Iterable[tuple[int, str]], folder: int, sizes: list[int], times: list[int]) -> None:
    stat, is_file = os.stat, st_modes.S_ISREG
    for place, name in names:
        try:
            status = stat(name, dir_fd=folder, follow_symlinks=False)
        except OSError:
            continue
        if is_file(status.st_mode):
            sizes[place], times[place] = status.st_size, status.st_mtime_ns
