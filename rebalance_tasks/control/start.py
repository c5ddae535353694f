"""From a plan to a running job: re-verify, group, create in one step, open the gate.

A crash after the creation is healed by the sweep, which admits and publishes what is due; a crash before it leaves
nothing. `start` twice with one job id is one job (invariant 3).
"""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING, Final

import numpy as np
from pydantic import TypeAdapter, ValidationError

from rebalance_tasks.control.carrying import require_carried
from rebalance_tasks.control.recheck import stale_moves
from rebalance_tasks.control.survey import adopt
from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.models import Identifier, NodeState, RebalancePlan
from rebalance_tasks.core.prices import per_gb
from rebalance_tasks.core.routes import shared_queues
from rebalance_tasks.core.states import MoveState
from rebalance_tasks.drivers.registry import validate_roots
from rebalance_tasks.migration.slice import BATCH_BYTES, BATCH_OBJECTS
from rebalance_tasks.store.jobs import NewGroup, NewJob, Stretch
from rebalance_tasks.store.records import GroupRecord
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.core.models import RebalanceJob
    from rebalance_tasks.core.move_columns import MoveColumns

log = get_logger(__name__)

#: A group is cut into so many stretches, so that several runners end at about the same time …
SHARES: Final = 16
#: … but of no fewer objects: each stretch costs a lease, two syncs and a manifest.
LEAST_OBJECTS: Final = 256
#: Stale moves carry this prefix in the counts.
STALE: Final = "stale_plan"
_IDENTIFIER: Final[TypeAdapter[str]] = TypeAdapter(Identifier)


def start_job(
    context: FleetContext, plan: RebalancePlan | str, *, job_id: str | None, requested_by: str
) -> RebalanceJob:
    """Start a plan, or return the job that was started under this id before.

    Args:
        context: the fleet.
        plan: a plan or the id of a kept one.
        job_id: default ``rebal-<plan id>``.
        requested_by: who or what asked, kept with the job.

    Raises:
        PlanNotFound, JobActive, InvalidArgument; NodeError when a node cannot be adopted; PlanInvariantError when what is
            left of the plan would widen the spread.
    """
    plan_id = plan if isinstance(plan, str) else plan.plan_id
    job_id = _identifier(f"rebal-{plan_id}" if job_id is None else job_id)
    if context.jobs.exists(job_id):
        return context.jobs.load(job_id)
    if isinstance(plan, RebalancePlan):
        moves = context.plans.save(plan, fence=None)
    else:
        plan, moves = context.plans.load_columns(plan_id)
    if plan.fleet != context.settings.fleet:
        msg = f"plan {plan_id} was made for fleet {plan.fleet!r}, this is fleet {context.settings.fleet!r}"
        raise InvalidArgument(msg)
    validate_roots(context.settings.nodes)
    require_carried(context.settings)
    if context.catalogue is not None:
        context.catalogue.open()
    adopt(context, only=nearby(context, moves.nodes()))
    context.locations.spread_frees(active=context.jobs.active())
    job = _freeze(context, plan, moves, job_id=job_id, requested_by=requested_by)
    if context.jobs.create(job):
        log.info("job.created", job_id=job_id, plan_id=plan_id, moves=len(job.states), groups=len(job.groups))
        context.messenger.open_chord(job_id, len(job.groups))
        if not job.groups:
            context.messenger.publish_finalize(job_id)
        context.holds.sort(job_id)
        admit(context, job_id)
    return context.jobs.load(job_id)


def nearby(context: FleetContext, node_ids: set[str]) -> set[str]:
    """Those nodes that every host reaches, this one too; the others are adopted by the first runner that comes there."""
    return node_ids & {node.node_id for node in context.settings.nodes if not node.queues}


def _identifier(job_id: str) -> str:
    """Refuse an id before it names keys in Redis and files on nodes; a job under it could be neither read nor cancelled."""
    try:
        return _IDENTIFIER.validate_python(job_id)
    except ValidationError as exc:
        msg = f"job_id {job_id[:80]!a} refused: 1 to 128 letters, digits, '.', '_', ':' or '-', the first a letter or digit"
        raise InvalidArgument(msg) from exc


def admit(context: FleetContext, job_id: str) -> int:
    """Let waiting groups through the gate and publish their headers; return how many."""
    options = context.settings.options
    admitted = context.jobs.admit(
        job_id, limit=options.max_concurrent_migrations, per_node=options.max_concurrent_per_node
    )
    for group in admitted:
        context.messenger.publish_group(job_id, group)
    return len(admitted)


def _freeze(
    context: FleetContext, plan: RebalancePlan, moves: MoveColumns, *, job_id: str, requested_by: str
) -> NewJob:
    """Order the moves by group, mark the stale ones, and number them: from here on a move is its index."""
    nodes = {node.node_id: node for node in context.nodes()}
    capacities = _capacities(context)
    stale = stale_moves(context, plan, moves, job_id=job_id, capacities=capacities)
    pairs, order, ends = moves.in_groups()
    moves, why = moves.take(order), stale.codes[order]
    holds = why < 0
    groups: list[NewGroup] = []
    begin = 0
    for number, (pair, end) in enumerate(zip(pairs, ends, strict=True)):
        rows = slice(begin, end)
        left = int(holds[rows].sum())
        if left:
            queue = shared_queues(nodes[pair[0]], nodes[pair[1]])[0]
            price = per_gb(nodes[pair[0]], nodes[pair[1]], context.settings.price_matrix)
            record = _record(f"g{number:04d}", pair, moves, rows, queue=queue, price=price)
            stretches = _stretches(moves, holds, rows)
            groups.append(NewGroup(record, score=float(number), left=left, stretches=stretches))
        begin = end
    counts = np.bincount(why + 1, minlength=len(stale.values) + 1)[1:].tolist()
    skipped: Counter[str] = Counter()
    for word, count in zip(stale.values, counts, strict=True):
        skipped[f"{STALE}_{word}"] += count
    states = np.where(holds, *(np.uint8(ord(state)) for state in (MoveState.PENDING, MoveState.SKIPPED)))
    return NewJob(
        job_id=job_id,
        plan_id=plan.plan_id,
        requested_by=requested_by,
        imbalance_before=plan.imbalance_before,
        states=states.tobytes().decode(),
        total_bytes=int(moves.size_bytes[holds].sum()),
        groups=groups,
        skipped=+skipped,
        capacities=capacities,
    )


def _stretches(moves: MoveColumns, holds: NDArray[np.bool_], rows: slice) -> list[Stretch]:
    """Cut a group's moves into what one runner takes at a time: a batch's worth, so that several runners share a group.

    Args:
        moves: of the job, in its order.
        holds: bool (n,): moves to be done; a stretch without any is left out.
        rows: of the group.
    """
    cut: list[Stretch] = []
    most = min(max((rows.stop - rows.start) // SHARES, LEAST_OBJECTS), BATCH_OBJECTS)
    keys, sizes = moves.keys[rows].to_pylist(), moves.size_bytes[rows].tolist()
    before = np.cumsum(moves.size_bytes[rows])
    begin = 0
    while begin < len(keys):
        full = int(before[begin]) - sizes[begin] + BATCH_BYTES
        end = min(begin + most, max(begin + 1, int(np.searchsorted(before, full, side="right"))), len(keys))
        first = rows.start + begin
        if holds[first : rows.start + end].any():
            cut.append(Stretch(first, list(zip(keys[begin:end], sizes[begin:end], strict=True))))
        begin = end
    return cut


def _record(
    group_id: str, pair: tuple[str, str], moves: MoveColumns, rows: slice, *, queue: str, price: Decimal
) -> GroupRecord:
    """Describe a group; for its budgets money counts as the plan says, or as it costs now where that is more."""
    size = int(moves.size_bytes[rows].sum())
    times = np.bincount(moves.cost.codes[rows], minlength=len(moves.cost.values)).tolist()
    cost = sum((value * count for value, count in zip(moves.cost.values, times, strict=True) if count), Decimal(0))
    stated = cost * 10**9 / size if size else cost
    return GroupRecord(
        group_id=group_id,
        source=pair[0],
        target=pair[1],
        offset=rows.start,
        size=rows.stop - rows.start,
        total_bytes=size,
        queue=queue,
        cost_per_gb=str(max(stated, price)),
    )


def _capacities(context: FleetContext) -> dict[str, int]:
    """Capacities while the job runs, for its budgets and its closing figures."""
    result: dict[str, int] = {}
    for node in context.nodes():
        if node.state is NodeState.MAINTENANCE:
            continue
        capacity = node.capacity_bytes
        if capacity is None and node.queues:
            surveyed = context.fleet.figures([node.node_id])[0].capacity
            capacity = surveyed if surveyed >= 0 else None
        elif capacity is None:
            capacity = context.driver(node.node_id).probe().total_bytes
        if capacity is not None:
            result[node.node_id] = capacity
    return result
