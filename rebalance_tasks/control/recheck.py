"""A plan is looked at again before its job starts: what no longer holds is skipped, with a word for the reason.

plan (minutes or days old) ─▶ **recheck** ── nodes, rules, cooldown and objects as they are now ──▶ moves that still hold

Keeps invariants 8 and 9 between plan and job. A plan of the fleet's present epoch was made from a listing of now, so its
objects are looked at when they are copied. Those of an older one are looked at here as well, and so are those of a node whose
listing is remembered (`control.survey_memory`): a file that is being written to shows in no folder, and must not be moved.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from rebalance_tasks.control.survey import with_last_moved
from rebalance_tasks.control.survey_memory import SurveyMemory
from rebalance_tasks.core.errors import RebalanceError
from rebalance_tasks.core.fingerprint import Fingerprint
from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.core.keys import validate_key
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.core.rules import with_rules
from rebalance_tasks.core.verify import broken_moves, require_no_wider_spread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.core.models import NodeDescriptor, RebalanceMove, RebalancePlan

#: The rule of which the look at the object itself knows more.
_GONE: Final = "source_gone"


def stale_moves(context: FleetContext, plan: RebalancePlan, *, capacities: Mapping[str, int]) -> dict[int, str]:
    """Say which moves of a plan can no longer be made.

    Args:
        context: the fleet.
        plan: what is about to start.
        capacities: of the nodes, in bytes.

    Returns:
        Position of a move → why, one of the words of `control.causes`.

    Raises:
        PlanInvariantError: the plan was to lower the spread, and what is left of it would widen it.
    """
    used = context.fleet.usage()
    nodes = [
        node.model_copy(
            update={"capacity_bytes": capacities.get(node.node_id), "used_bytes": used.get(node.node_id, 0)}
        )
        for node in context.nodes()
    ]
    fresh = plan.epoch == context.fleet.epoch()
    looks = _Looks(context, nodes, plan, fresh=fresh)
    broken = broken_moves(plan, nodes, looks.inventory(), context.settings.options, now=context.now())
    stale = {at: looks.why.get(at, exc.word) if exc.word == _GONE else exc.word for at, exc in broken.items()}
    stale = {**dict.fromkeys(looks.again, "duplicate"), **stale}
    # A plan that was made by hand, or of what another one left over, promises nothing of the spread.
    promised = plan.imbalance_after < plan.imbalance_before
    if promised and used and (stale or not fresh):
        rest = tuple(move for at, move in enumerate(plan.moves) if at not in stale)
        require_no_wider_spread(
            plan.model_copy(update={"moves": rest}), nodes, Inventory.from_listings({}), context.settings.options
        )
    return stale


class _Looks:
    """The objects of a plan as they are now.

    Attributes:
        why: position of a move → why its object cannot be had.
        again: positions of moves whose object an earlier move takes already.
    """

    def __init__(self, context: FleetContext, nodes: list[NodeDescriptor], plan: RebalancePlan, *, fresh: bool) -> None:
        self._context = context
        self.why: dict[int, str] = {}
        self.again: list[int] = []
        self._rows: list[tuple[str, int, str, int | None]] = []
        giving = {node.node_id for node in nodes if node.state is not NodeState.MAINTENANCE}
        seen: set[str] = set()
        by_source: defaultdict[str, list[tuple[int, RebalanceMove]]] = defaultdict(list)
        for at, move in enumerate(plan.moves):
            if move.object_key in seen:
                self.again.append(at)
            elif move.source_node in giving:
                by_source[move.source_node].append((at, move))
            seen.add(move.object_key)
        memory = SurveyMemory.of(context.settings)
        # What only other hosts reach is looked at by the runner: a source that is gone or has changed is nothing new to it.
        far = {node.node_id for node in nodes if node.queues}
        for source, moves in by_source.items():
            driver = context.driver(source)
            if source in far or (fresh and not memory.serves(driver)):
                self._look(moves, lambda move: Fingerprint(move.size_bytes))
            else:
                with driver.hold():
                    self._look(moves, lambda move, driver=driver: driver.stat(move.object_key))  # type: ignore[misc]

    def inventory(self) -> Inventory:
        """What was found, with the rules of the fleet and when each was moved last."""
        keys, sizes, holders, times = zip(*self._rows, strict=True) if self._rows else ((), (), (), ())
        columns = {
            "object_key": pa.array(keys, pa.large_string()),
            "size_bytes": pa.array(sizes, pa.int64()),
            "node_id": pa.array(holders, pa.string()),
            "mtime_ns": pa.array(times, pa.int64()),
        }
        found = with_rules(Inventory.from_arrow(pa.table(columns)), self._context.settings.rules)
        return with_last_moved(found, self._context.locations.last_moved())

    def _look(
        self, moves: list[tuple[int, RebalanceMove]], found_at: Callable[[RebalanceMove], Fingerprint | None]
    ) -> None:
        for at, move in moves:
            try:
                validate_key(move.object_key)
                found = found_at(move)
            except RebalanceError as exc:
                self.why[at] = exc.cause
                continue
            if found is not None:
                self._rows.append((move.object_key, found.size_bytes, move.source_node, found.mtime_ns or None))
