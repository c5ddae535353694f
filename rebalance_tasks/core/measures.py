"""Measures of use for an inventory that brings none: from times, from counted accesses, from neighbours in a folder.

Each function returns the inventory with one more column, and leaves a column alone that is there already: what the host says
goes before what is guessed. Which of them run is `[gravity]` in rebalance.toml. Pure; reading logs is `control.access_log`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rebalance_tasks.core.inventory import UNKNOWN_TIME

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rebalance_tasks.core.inventory import Inventory

_HOUR_NS: Final = 3_600 * 10**9
#: Everything up to the last slash.
_NAME: Final = r"[^/]*$"


def with_access_from_times(inventory: Inventory, now_ns: int) -> Inventory:
    """Guess reads an hour: one since the last access, or since the last change where no access is known.

    Args:
        inventory: with ``last_access_ns`` or ``mtime_ns``; without both nothing is known, and nothing changes.
        now_ns: nanoseconds since 1970; times after it count as an hour ago.
    """
    if inventory.reads_per_hour is not None:
        return inventory
    seen, changed = inventory.last_access_ns, inventory.mtime_ns
    if seen is None and changed is None:
        return inventory
    unknown = np.full(len(inventory), UNKNOWN_TIME, np.int64)
    times = np.maximum(unknown if seen is None else seen, unknown if changed is None else changed)
    hours = np.maximum(1.0, (now_ns - times.astype(np.float64)) / _HOUR_NS)
    return _with(inventory, reads_per_hour=np.where(times == UNKNOWN_TIME, 0.0, 1.0 / hours))


def with_access_counts(inventory: Inventory, counts: Mapping[str, tuple[int, int]], hours: float) -> Inventory:
    """Add reads and writes an hour from counted accesses.

    Args:
        inventory: without a column of reads; one that is there stays.
        counts: key → (reads, writes); a key that is missing was not used.
        hours: over which they were counted, > 0.
    """
    if inventory.reads_per_hour is not None or not counts:
        return inventory
    known = pa.array(list(counts), type=pa.large_string())
    rows = pc.fill_null(pc.index_in(inventory.keys, value_set=known), len(counts)).to_numpy(zero_copy_only=False)
    used = np.array([*counts.values(), (0, 0)], np.float64)[rows] / hours
    return _with(inventory, reads_per_hour=used[:, 0].copy(), writes_per_hour=used[:, 1].copy())


def with_neighbours(inventory: Inventory) -> Inventory:
    """Count as dependencies the other objects of the same folder on the same node; an object in no folder has none."""
    if inventory.colocated_dependencies is not None or not len(inventory):
        return inventory
    folders = pc.replace_substring_regex(inventory.keys, _NAME, "").dictionary_encode()
    code = folders.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    place = code * len(inventory.node_ids) + inventory.node_index
    _, at, counts = np.unique(place, return_inverse=True, return_counts=True)
    names = pc.equal(folders.dictionary, "").to_numpy(zero_copy_only=False)
    return _with(inventory, colocated_dependencies=np.where(names[code], 0, counts[at] - 1).astype(np.int64))


def _with(inventory: Inventory, **columns: Any) -> Inventory:  # noqa: ANN401  columns of any type, by name
    """Add read-only columns; what was found out about the keys still holds."""
    ambiguous = inventory.ambiguous
    for column in columns.values():
        column.flags.writeable = False
    made = replace(inventory, **columns)
    made.__dict__["ambiguous"] = ambiguous
    return made
