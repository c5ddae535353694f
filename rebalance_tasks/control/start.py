"""From a plan to a running job: re-verify, group, create in one step, open the gate.

A crash after the creation is healed by the sweep, which admits and publishes what is due; a crash before it leaves
nothing. `start` twice with one job id is one job (invariant 3).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final

from pydantic import TypeAdapter, ValidationError

from rebalance_tasks.control.carrying import require_carried
from rebalance_tasks.control.recheck import stale_moves
from rebalance_tasks.control.survey import adopt
from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.models import Identifier, NodeState, RebalancePlan
from rebalance_tasks.core.routes import shared_queues
from rebalance_tasks.core.states import MoveState
from rebalance_tasks.drivers.registry import validate_roots
from rebalance_tasks.migration.slice import BATCH_BYTES, BATCH_OBJECTS
from rebalance_tasks.store.jobs import NewGroup, NewJob, Stretch
from rebalance_tasks.store.records import GroupRecord
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.core.models import NodeDescriptor, RebalanceJob, RebalanceMove

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
        context.plans.save(plan, fence=None)
    else:
        plan = context.plans.load(plan_id)
    if plan.fleet != context.settings.fleet:
        msg = f"plan {plan_id} was made for fleet {plan.fleet!r}, this is fleet {context.settings.fleet!r}"
        raise InvalidArgument(msg)
    validate_roots(context.settings.nodes)
    require_carried(context.settings)
    if context.catalogue is not None:
        context.catalogue.open()
    adopt(context, only=touched_nearby(context, plan))
    context.locations.spread_frees(active=context.jobs.active())
    job = _freeze(context, plan, job_id=job_id, requested_by=requested_by)
    if context.jobs.create(job):
        log.info("job.created", job_id=job_id, plan_id=plan_id, moves=len(job.states), groups=len(job.groups))
        context.messenger.open_chord(job_id, len(job.groups))
        if not job.groups:
            context.messenger.publish_finalize(job_id)
        context.holds.sort(job_id)
        admit(context, job_id)
    return context.jobs.load(job_id)


def touched_nearby(context: FleetContext, plan: RebalancePlan) -> set[str]:
    """Nodes of a plan that every host reaches, this one too; the others are adopted by the first runner that comes there."""
    near = {node.node_id for node in context.settings.nodes if not node.queues}
    return near & {name for move in plan.moves for name in (move.source_node, move.target_node)}


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


def _freeze(context: FleetContext, plan: RebalancePlan, *, job_id: str, requested_by: str) -> NewJob:
    """Order the moves by group, mark the stale ones, and number them: from here on a move is its index."""
    nodes = {node.node_id: node for node in context.nodes()}
    capacities = _capacities(context)
    stale = stale_moves(context, plan, capacities=capacities)
    by_pair: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for at, move in enumerate(plan.moves):
        by_pair[move.source_node, move.target_node].append(at)
    pairs = sorted(by_pair, key=lambda pair: (-max(plan.moves[at].priority for at in by_pair[pair]), pair))
    states: list[str] = []
    total_bytes = 0
    groups: list[NewGroup] = []
    skipped: Counter[str] = Counter()
    for number, pair in enumerate(pairs):
        moves = [plan.moves[at] for at in by_pair[pair]]
        offset = len(states)
        for at, move in zip(by_pair[pair], moves, strict=True):
            states.append(MoveState.SKIPPED if at in stale else MoveState.PENDING)
            if at in stale:
                skipped[f"{STALE}_{stale[at]}"] += 1
            else:
                total_bytes += move.size_bytes
        left = states[offset:].count(MoveState.PENDING)
        if left:
            record = _record(nodes, f"g{number:04d}", moves, offset=offset)
            stretches = _stretches(moves, states[offset:], first=offset)
            groups.append(NewGroup(record, score=float(number), left=left, stretches=stretches))
    return NewJob(
        job_id=job_id,
        plan_id=plan.plan_id,
        requested_by=requested_by,
        imbalance_before=plan.imbalance_before,
        states="".join(states),
        total_bytes=total_bytes,
        groups=groups,
        skipped=dict(skipped),
        capacities=capacities,
    )


def _stretches(moves: Sequence[RebalanceMove], states: Sequence[str], *, first: int) -> list[Stretch]:
    """Cut a group's moves into what one runner takes at a time: a batch's worth, so that several runners share a group."""
    cut: list[Stretch] = []
    begin = size = 0
    most = min(max(len(moves) // SHARES, LEAST_OBJECTS), BATCH_OBJECTS)
    for place, move in enumerate(moves):
        size += move.size_bytes
        if place > begin and (place - begin == most or size > BATCH_BYTES):
            cut.append(_stretch(moves, first, begin, place))
            begin, size = place, move.size_bytes
    cut.append(_stretch(moves, first, begin, len(moves)))
    return [s for s in cut if MoveState.PENDING in states[s.first - first : s.first - first + len(s.keys)]]


def _stretch(moves: Sequence[RebalanceMove], first: int, begin: int, end: int) -> Stretch:
    return Stretch(first + begin, [(move.object_key, move.size_bytes) for move in moves[begin:end]])


def _record(
    nodes: Mapping[str, NodeDescriptor], group_id: str, moves: Sequence[RebalanceMove], *, offset: int
) -> GroupRecord:
    source, target = moves[0].source_node, moves[0].target_node
    size = sum(move.size_bytes for move in moves)
    cost = sum(move.cost for move in moves)
    per_gb = cost * 10**9 / size if size else cost
    return GroupRecord(
        group_id=group_id,
        source=source,
        target=target,
        offset=offset,
        size=len(moves),
        total_bytes=size,
        queue=shared_queues(nodes[source], nodes[target])[0],
        cost_per_gb=str(per_gb),
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
