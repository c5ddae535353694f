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

from rebalance_tasks.core.gravity import ACCESS_DECADES
from rebalance_tasks.core.inventory import UNKNOWN_TIME
from rebalance_tasks.core.patterns import matching

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from rebalance_tasks.core.inventory import Inventory
    from rebalance_tasks.core.rule import Rule

_HOUR_NS: Final = 3_600 * 10**9
#: An object that was used within the hour is as hot as the formula goes, and each tenfold age takes a decade of it: a time says when, not
#: how often, and counted as a single access it would rank nothing (docs/adr/0040).
_RECENT_PER_HOUR: Final = 10.0**ACCESS_DECADES
#: Columns in which nothing known is nothing.
_COUNTED: Final = frozenset({"reads_per_hour", "writes_per_hour", "colocated_dependencies"})
#: What follows the last slash, with the slash; what follows the first.
_NAME: Final = r"/[^/]*$"
_BELOW_FIRST: Final = r"(?s)/.*$"


def with_access_from_times(inventory: Inventory, now_ns: int) -> Inventory:
    """Rank by the time of the last access or change, whichever is later: 10⁴ reads an hour ÷ hours since then, one hour at least.

    The access score is then 1 within the hour, ¾ after ten hours, ½ after four days, ¼ after six weeks, 0.08 after a year.

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
    return _with(inventory, reads_per_hour=np.where(times == UNKNOWN_TIME, 0.0, _RECENT_PER_HOUR / hours))


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
    return _with_mates(inventory, _folders(inventory, _NAME))


def with_datasets(inventory: Inventory, rules: Sequence[Rule]) -> Inventory:
    """Count as dependencies the other objects of the same dataset on the same node.

    An object's dataset is what the first rule that matches its key and names one says, else its first folder; an object in no
    folder has none then.

    Args:
        inventory: without a column of dependencies; one that is there stays.
        rules: of the fleet.
    """
    if inventory.colocated_dependencies is not None or not len(inventory):
        return inventory
    code = _folders(inventory, _BELOW_FIRST)
    declared = np.full(len(inventory), -1, np.int64)
    named = [rule for rule in rules if rule.dataset]
    number = {rule.dataset: at for at, rule in enumerate(named)}
    for rule in named:
        declared[(declared < 0) & matching(inventory.keys, [rule.pattern])] = number[rule.dataset]
    return _with_mates(inventory, np.where(declared < 0, code, declared + int(code.max()) + 1))


def _folders(inventory: Inventory, cut: str) -> NDArray[np.int64]:
    """Return int64 (n,): equal numbers for keys that are equal without what a pattern matches, −1 for keys in no folder."""
    folders = pc.replace_substring_regex(inventory.keys, cut, "/").dictionary_encode()
    code: NDArray[np.int64] = folders.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return np.where(pc.less(pc.find_substring(inventory.keys, "/"), 0).to_numpy(zero_copy_only=False), -1, code)


def _with_mates(inventory: Inventory, code: NDArray[np.int64]) -> Inventory:
    """Add how many others of the same number are on the same node; −1 is alone."""
    place = code * len(inventory.node_ids) + inventory.node_index
    _, at, counts = np.unique(place, return_inverse=True, return_counts=True)
    return _with(inventory, colocated_dependencies=np.where(code < 0, 0, counts[at] - 1).astype(np.int64))


def with_told(inventory: Inventory, **columns: NDArray[np.float64]) -> Inventory:
    """Add what a host told of its objects, each float64 (n,) with NaN where it knows nothing; columns that are there stay.

    What is not known is 0 reads, writes and dependencies; prices, latencies and compliance stay unknown, so that the node's own
    and the rules count (`planner_candidates.gravity_of`).
    """
    made: dict[str, NDArray[Any]] = {}
    for name, column in columns.items():
        if getattr(inventory, name) is None:
            known = np.nan_to_num(column, nan=0.0) if name in _COUNTED else column.copy()
            made[name] = known.astype(np.int64) if name == "colocated_dependencies" else known
    return _with(inventory, **made) if made else inventory


def _with(inventory: Inventory, **columns: Any) -> Inventory:  # noqa: ANN401  columns of any type, by name
    """Add read-only columns; what was found out about the keys still holds."""
    ambiguous = inventory.ambiguous
    for column in columns.values():
        column.flags.writeable = False
    made = replace(inventory, **columns)
    made.__dict__["ambiguous"] = ambiguous
    return made
