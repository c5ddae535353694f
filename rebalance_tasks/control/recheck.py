"""A plan is looked at again before its job starts: what no longer holds is skipped, with a word for the reason.

plan (minutes or days old) ─▶ **recheck** ── nodes, rules, cooldown and objects as they are now ──▶ moves that still hold

Keeps invariants 8 and 9 between plan and job: every rule of `verify_plan` is asked once more here, or counted to the byte by
whoever carries the moves out (room, budgets, at the prices of now); a plan's own sums are only told. Measures of use and a
host's inventory are read again, for the objects of the plan alone, so that of a folder's neighbours only those are known that
move as well. A plan of the fleet's present epoch was made from a listing of now, so its objects are looked at when they are
copied. Those of an older one are looked at here as well, and so are those of a node whose listing is remembered
(`control.surveying.memory`): a file that is being written to shows in no folder, and must not be moved.

A source that is gone because this very job moved it, which Redis forgot, is left to the runner, who counts it by its manifest. So is
one that has changed while a copy, perhaps this job's own, stands at its target.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rebalance_tasks.control.custody import job_of
from rebalance_tasks.control.inventories import FROM_NODES
from rebalance_tasks.control.measuring import measured
from rebalance_tasks.control.survey import with_last_moved
from rebalance_tasks.control.surveying.memory import SurveyMemory
from rebalance_tasks.control.surveying.streams import rows_about
from rebalance_tasks.core.errors import InvalidKey, NodeError, SourceChanged
from rebalance_tasks.core.inventory import UNKNOWN_TIME, Coded, Inventory
from rebalance_tasks.core.key_columns import are_valid
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.core.verify import broken_moves, require_no_wider_spread
from rebalance_tasks.drivers.looks import UNSEEN, look_at
from rebalance_tasks.migration import manifests

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.core.models import NodeDescriptor, RebalancePlan
    from rebalance_tasks.core.move_columns import MoveColumns

#: The rule of which the look at the object itself knows more.
_GONE: Final = "source_gone"
#: A latency that nobody measures here adds nothing to an object's gravity.
_FAR_MS: Final = 1e6
#: A later move of an object that an earlier one takes.
_DUPLICATE: Final = "duplicate"


def stale_moves(
    context: FleetContext, plan: RebalancePlan, moves: MoveColumns, *, job_id: str, capacities: Mapping[str, int]
) -> Coded[str]:
    """Say which moves of a plan can no longer be made.

    Args:
        context: the fleet.
        plan: what is about to start; its own moves are not looked at.
        moves: of the plan.
        job_id: of the job that is to make them; its manifests tell what it has moved already.
        capacities: of the nodes, in bytes.

    Returns:
        Why each move can no longer be made, one of the words of `control.causes`; code −1 where it can.

    Raises:
        PlanInvariantError: the plan was to lower the spread, and what is left of it would widen it.
    """
    used = context.fleet.usage()
    nodes = [
        node.model_copy(
            update={
                "capacity_bytes": capacities.get(node.node_id),
                "used_bytes": used.get(node.node_id, 0),
                "latency_ms": _FAR_MS if node.latency_ms is None else node.latency_ms,
            }
        )
        for node in context.nodes()
    ]
    fresh = plan.epoch == context.fleet.epoch()
    looks = _Looks(context, nodes, moves, fresh=fresh)
    broken = broken_moves(
        plan,
        moves,
        nodes,
        looks.inventory(),
        context.settings.options,
        prices=context.settings.price_matrix,
        now=context.now(),
    )
    stale = _joined(broken.codes, broken.words, looks)
    stale.codes[_begun_before(context, moves, stale, job_id=job_id)] = -1
    # A plan that was made by hand, or of what another one left over, promises nothing of the spread.
    promised = plan.imbalance_after < plan.imbalance_before
    holds = stale.codes < 0
    if promised and used and not (fresh and holds.all()):
        rest = moves.take(np.flatnonzero(holds))
        require_no_wider_spread(plan, rest, nodes, Inventory.from_listings({}), context.settings.options)
    return stale


def _as_seen(told: Inventory, found: Inventory, moves: MoveColumns) -> Inventory:
    """Return what a host's inventory says, with sizes and times as they were found; what was looked for and is gone is no row."""
    at = pc.fill_null(pc.index_in(told.keys, value_set=found.keys), -1).to_numpy(zero_copy_only=False)
    move = pc.fill_null(pc.index_in(told.keys, value_set=moves.keys), -1).to_numpy(zero_copy_only=False)
    holder, finder = (np.array([*one.node_ids, ""], object)[one.node_index] for one in (told, found))
    source = np.array([*moves.source.values, ""], object)[moves.source.codes]
    seen = (at >= 0) & (np.append(finder, "")[at] == holder)
    left = np.flatnonzero(seen | (move < 0) | (np.append(source, "")[move] != holder))
    rows, seen = at[left], seen[left]
    kept = told.take(left)
    unknown = np.full(len(left), UNKNOWN_TIME, np.int64)
    was = unknown if kept.mtime_ns is None else kept.mtime_ns
    now = unknown if found.mtime_ns is None else np.append(found.mtime_ns, UNKNOWN_TIME)[rows]
    times = np.where(seen & (now != UNKNOWN_TIME), now, was)
    return replace(
        kept, size_bytes=np.where(seen, np.append(found.size_bytes, 0)[rows], kept.size_bytes), mtime_ns=times
    )


def _joined(broken: NDArray[np.int32], words: list[str], looks: _Looks) -> Coded[str]:
    """Put together what rules say and what the looks at the objects found: the former goes first, but for objects that are gone."""
    named = [*words, _DUPLICATE, *sorted(set(looks.why.values()))]
    codes = np.where((broken < 0) & looks.repeated, len(words), broken).astype(np.int32)
    for at, why in looks.why.items():
        if codes[at] >= 0 and named[codes[at]] == _GONE:
            codes[at] = named.index(why, len(words))
    return Coded(codes, tuple(named))


def _begun_before(context: FleetContext, moves: MoveColumns, stale: Coded[str], *, job_id: str) -> list[int]:
    """Return the places of moves that this job may have made, or begun, before Redis forgot it.

    Those are moves whose source is gone and that its manifests list, and moves whose source has changed while something stands at
    the target's key: their runner finds out what it is, and a move that he gives up is one that cleanup looks for.
    """
    found: list[int] = []
    for word, left_there in ((_GONE, _listed), (SourceChanged.cause, _held)):
        if word not in stale.values:
            continue
        rows = np.flatnonzero(stale.codes == stale.values.index(word))
        codes = moves.target.codes[rows]
        for code in np.unique(codes).tolist():
            places = rows[codes == code]
            part = moves.take(places)
            found += places[left_there(context, moves.target.values[code], part, job_id)].tolist()
    return found


def _listed(context: FleetContext, target: str, moves: MoveColumns, job_id: str) -> NDArray[np.bool_]:
    """Which moves to a node the manifests of a job list there; all where the node cannot be asked."""
    try:
        driver = context.driver(target)
        driver.check_identity()
        entries = manifests.entries(driver)
        known = {(entry.key, entry.source) for _, entry in entries if job_of(entry.move_id) == job_id}
    except NodeError:
        return np.ones(len(moves), np.bool_)
    sources = [moves.source.values[code] for code in moves.source.codes.tolist()]
    return np.array([name in known for name in zip(moves.keys.to_pylist(), sources, strict=True)], np.bool_)


def _held(context: FleetContext, target: str, moves: MoveColumns, _: str) -> NDArray[np.bool_]:
    """For which moves to a node something stands at the key there; none where the node cannot be asked."""
    try:
        driver = context.driver(target)
        driver.check_identity()
        sizes, _times, _why = look_at(driver, moves.keys.to_pylist())
    except NodeError:
        return np.zeros(len(moves), np.bool_)
    held: NDArray[np.bool_] = sizes != UNSEEN
    return held


class _Looks:
    """The objects of a plan as they are now.

    Attributes:
        why: place of a move → why its object cannot be had.
        repeated: bool (n,): an earlier move takes the object already.
    """

    def __init__(self, context: FleetContext, nodes: list[NodeDescriptor], moves: MoveColumns, *, fresh: bool) -> None:
        self._context, self._moves = context, moves
        self.repeated = moves.repeated()
        valid = are_valid(moves.keys)
        self.why = dict.fromkeys(np.flatnonzero(~valid).tolist(), InvalidKey.cause)
        self._sizes, self._times = moves.size_bytes.copy(), np.zeros(len(moves), np.int64)
        self._there = np.zeros(len(moves), np.bool_)
        memory = SurveyMemory.of(context.settings)
        giving = {node.node_id: node for node in nodes if node.state is not NodeState.MAINTENANCE}
        for code, source in enumerate(moves.source.values):
            if (node := giving.get(source)) is None:
                continue
            rows = np.flatnonzero((moves.source.codes == code) & valid & ~self.repeated)
            self._there[rows] = True
            # What only other hosts reach is looked at by the runner: a source that is gone or has changed is nothing new to it.
            if not node.queues and not (fresh and not memory.serves(context.driver(source))):
                self._look(source, rows)

    def inventory(self) -> Inventory:
        """What was found, with what the fleet's rules, measures and inventory say of it, and when each was moved last."""
        settings, rows = self._context.settings, np.flatnonzero(self._there)
        found = self._found(rows)
        if settings.inventory != FROM_NODES:
            told = rows_about(
                settings, self._context.nodes(), self._moves.keys, measured=partial(measured, self._context)
            )
            found = _as_seen(told, found, self._moves)
        else:
            found = measured(self._context, found)
        return with_last_moved(found, self._context.locations.last_moved())

    def _found(self, rows: NDArray[np.int64]) -> Inventory:
        source = self._moves.source
        holders = pa.DictionaryArray.from_arrays(pa.array(source.codes[rows]), pa.array(source.values, pa.string()))
        times = self._times[rows]
        columns = {
            "object_key": self._moves.keys.take(pa.array(rows)),
            "size_bytes": self._sizes[rows],
            "node_id": holders,
            "mtime_ns": pa.array(times, mask=times == 0),
        }
        return Inventory.from_arrow(pa.table(columns))

    def _look(self, source: str, rows: NDArray[np.int64]) -> None:
        """Look at the objects of some moves, all on one node."""
        keys = self._moves.keys.take(pa.array(rows)).to_pylist()
        sizes, self._times[rows], why = look_at(self._context.driver(source), keys)
        self._there[rows] = sizes != UNSEEN
        self._sizes[rows] = sizes
        self.why.update((int(rows[place]), cause) for place, cause in why.items())
