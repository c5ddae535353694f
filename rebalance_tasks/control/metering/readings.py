"""What the metrics of a fleet are right now: one look at Redis, and the samples that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from rebalance_tasks.control.causes import HINTS
from rebalance_tasks.control.fleetwide import limit_in_force, throttle_in_force
from rebalance_tasks.control.throttles import node_throttles
from rebalance_tasks.core.errors import JobNotFound
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.core.routes import every_queue
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.store.counters import JOB_BOUNDS_S, TASK_BOUNDS_S
from rebalance_tasks.store.versions import NewerVersion

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.core.models import NodeDescriptor, RebalanceJob

#: Values of the labels (without the fleet), and the value.
Sample: TypeAlias = "tuple[tuple[str, ...], float]"
#: Values of the labels, (upper bound, cumulated count) of each bucket, and the sum in seconds.
Histogram: TypeAlias = "tuple[tuple[str, ...], list[tuple[str, float]], float]"
Samples: TypeAlias = "dict[str, list[Sample]]"
#: Names of queues → messages that wait in each.
QueueDepths: TypeAlias = "Callable[[Sequence[str]], Mapping[str, int]]"

NANO: Final = 10**9
#: Trash that has been due for so long should have been purged by one of ten cleanups.
OVERDUE_MS: Final = 10 * 60 * 1000
TASKS: Final = (
    "check",
    "start",
    "pause",
    "resume",
    "cancel",
    "migrate",
    "monitor",
    "finalize",
    "sweep",
    "cleanup",
    "notify",
)


@dataclass(frozen=True, slots=True)
class _Look:
    """What was read in one trip."""

    now_ms: int
    forwardings: int
    trash: int
    overdue: int
    held: int


def read(
    context: FleetContext, queue_depths: QueueDepths, *, digest: str
) -> tuple[Samples, dict[str, list[Histogram]]]:
    """Read every metric but those that have nothing to say.

    Args:
        context: the fleet.
        queue_depths: counts the messages that wait on the broker.
        digest: of the fleet's configuration.

    Raises:
        RedisError.
    """
    nodes = context.nodes()
    look = _look(context)
    counters = context.counters.totals()
    samples: Samples = {
        "rebalance_redis_up": [((), 1)],
        "rebalance_imbalance_threshold_ratio": [((), context.settings.options.imbalance_threshold)],
        "rebalance_forwardings": [((), look.forwardings)],
        "rebalance_trash_records": [((), look.trash)],
        "rebalance_trash_overdue_records": [((), look.overdue)],
        "rebalance_permits_held": [((), look.held)],
        **_nodes(context, nodes),
        **_counted(counters),
        **_limits(context),
        **_job(context),
        **_checks(context),
        **_workers(context, look.now_ms, digest),
    }
    depths = queue_depths(every_queue(nodes))
    samples["rebalance_queue_messages"] = [((queue,), count) for queue, count in depths.items()]
    return samples, {
        "rebalance_job_duration_seconds": [((), *_buckets(counters, "job", JOB_BOUNDS_S, _all(counters, "jobs:")))],
        "rebalance_task_duration_seconds": [
            ((task,), *_buckets(counters, f"task:{task}", TASK_BOUNDS_S, total))
            for task in TASKS
            if (total := _all(counters, f"tasks:{task}:"))
        ],
    }


def _look(context: FleetContext) -> _Look:
    keys, redis = context.keys, context.connection
    now_ms = redis.now_ms()
    pipe = redis.client.pipeline(transaction=False)
    pipe.hlen(keys.forwarding)
    pipe.zcard(keys.trash_due)
    pipe.zcount(keys.trash_due, "-inf", now_ms - OVERDUE_MS)
    pipe.hlen(keys.permits)
    forwardings, trash, overdue, held = pipe.execute()
    return _Look(now_ms, forwardings, trash, overdue, held)


# -- nodes ---------------------------------------------------------------------------------------------------------------
def _nodes(context: FleetContext, nodes: Sequence[NodeDescriptor]) -> Samples:
    shares: list[Sample] = []
    used: list[Sample] = []
    capacities: list[Sample] = []
    reserved: list[Sample] = []
    trash: list[Sample] = []
    by_pool: dict[str, list[float]] = {}
    for node, figures in zip(nodes, context.fleet.figures([node.node_id for node in nodes]), strict=True):
        label = (node.node_id,)
        capacity = node.capacity_bytes or max(0, figures.capacity)
        capacities.append((label, capacity))
        if figures.reserved:
            reserved.append((label, figures.reserved))
        if figures.awaiting:
            trash.append((label, figures.awaiting))
        if figures.used < 0 and figures.capacity < 0:
            continue  # never surveyed; one that was and holds nothing has no entry of its own
        used.append((label, max(0, figures.used)))
        if capacity:
            share = max(0, figures.used) / capacity
            shares.append(((node.node_id, node.pool, node.zone), share))
            if node.state is NodeState.ACTIVE:
                by_pool.setdefault(node.pool, []).append(share)
    known = {node.node_id for node in nodes}
    return {
        "rebalance_imbalance_ratio": [((pool,), max(found) - min(found)) for pool, found in by_pool.items()],
        "rebalance_node_utilisation_ratio": shares,
        "rebalance_node_used_bytes": used,
        "rebalance_node_capacity_bytes": capacities,
        "rebalance_node_reserved_bytes": reserved,
        "rebalance_node_trash_bytes": trash,
        "rebalance_node_state": [
            ((node.node_id, node.state.value), 1) for node in nodes if node.state is not NodeState.ACTIVE
        ],
        "rebalance_node_held": [
            ((hold.node_id, hold.owner), 1) for hold in context.holds.all() if hold.node_id in known
        ],
    }


# -- counters ------------------------------------------------------------------------------------------------------------
def _counted(counters: Mapping[str, int]) -> Samples:
    causes: dict[str, int] = {}
    for name, count in counters.items():
        kind, _, cause = name.partition(":")
        if kind == "cause":
            # What another release, or whoever can write to Redis, has noted must not make a series of its own.
            known = cause if cause in HINTS else "other"
            causes[known] = causes.get(known, 0) + count

    def by(prefix: str, values: Sequence[str]) -> list[Sample]:
        return [((value,), counters.get(f"{prefix}:{value}", 0)) for value in values]

    ended = [status.value for status in RebalanceStatus if status.terminal]
    return {
        "rebalance_moves_total": by("moves", ("completed", "failed", "skipped")),
        "rebalance_move_causes_total": [((cause,), count) for cause, count in sorted(causes.items())],
        "rebalance_moved_bytes_total": [((), counters.get("moved_bytes", 0))],
        "rebalance_egress_bytes_total": [((), counters.get("egress_bytes", 0))],
        "rebalance_cost_total": [((), counters.get("cost_nano", 0) / NANO)],
        "rebalance_jobs_total": by("jobs", ended),
        "rebalance_checks_total": by("checks", ("skipped", "planned", "started")),
        "rebalance_notices_total": by("notices", ("delivered", "failed", "given_up")),
        "rebalance_tasks_total": [
            ((task, ended_as), count)
            for task in TASKS
            for ended_as in ("done", "failed", "ignored")
            if (count := counters.get(f"tasks:{task}:{ended_as}", 0))
        ],
    }


def _all(counters: Mapping[str, int], prefix: str) -> int:
    return sum(count for name, count in counters.items() if name.startswith(prefix))


def _buckets(
    counters: Mapping[str, int], name: str, bounds: Sequence[float], total: int
) -> tuple[list[tuple[str, float]], float]:
    cumulated, buckets = 0, []
    for bound in bounds:
        cumulated += counters.get(f"{name}_seconds:{bound:g}", 0)
        buckets.append((f"{float(bound)}", float(cumulated)))
    return [*buckets, ("+Inf", float(total))], counters.get(f"{name}_ms", 0) / 1000


# -- limits, job, checks, workers ------------------------------------------------------------------------------------------
def _limits(context: FleetContext) -> Samples:
    rate = throttle_in_force(context)
    throttled = "configured" if context.fleet.throttle() is None else "set_at_run_time"
    limited = "configured" if context.fleet.limit() is None else "set_at_run_time"
    nodes = [entry for entry in node_throttles(context) if entry.direction != "requests"]
    return {
        "rebalance_node_rate_bytes": [
            ((entry.node_id, entry.direction, entry.why), entry.rate_now or float("inf")) for entry in nodes
        ],
        "rebalance_node_latency_seconds": [
            ((entry.node_id, entry.direction), entry.pace.smoothed_ms / 1000)
            for entry in nodes
            if entry.pace is not None
        ],
        "rebalance_throttle_rate_bytes": [((throttled,), float("inf") if rate is None else rate)],
        "rebalance_permits_limit": [((limited,), limit_in_force(context))],
    }


def _job(context: FleetContext) -> Samples:
    reasons = context.fleet.paused_reasons()
    job = _active(context)
    found: Samples = {}
    if job is not None:
        reasons |= {reason.partition(":")[0] for reason in job.paused_reasons}
        keys, redis = context.keys.job(job.job_id), context.connection.client
        done = job.completed_moves + job.failed_moves + job.skipped_moves
        left_bytes, idle_s = max(0, job.total_bytes - job.bytes_moved), context.progress.idle_s(job.job_id)
        found = {
            "rebalance_job_active": [((job.status.value,), 1)],
            "rebalance_job_moves": [
                (("completed",), job.completed_moves),
                (("failed",), job.failed_moves),
                (("skipped",), job.skipped_moves),
                (("left",), job.total_moves - done),
            ],
            "rebalance_job_left_bytes": [((), left_bytes)],
            "rebalance_groups_waiting": [(("permit",), redis.zcard(keys.queue)), (("node",), redis.zcard(keys.held))],
        }
        found |= _known("rebalance_job_eta_seconds", job.eta) | _known("rebalance_job_idle_seconds", idle_s)
    return found | {"rebalance_paused": [((reason,), 1) for reason in sorted(reasons)]}


def _active(context: FleetContext) -> RebalanceJob | None:
    job_id = context.jobs.active()
    try:
        job = None if job_id is None else context.jobs.load(job_id)
    except (JobNotFound, NewerVersion):  # a newer release's exporter tells of it
        return None
    return None if job is None or job.status.terminal else job


def _known(name: str, value: float | None) -> Samples:
    return {} if value is None else {name: [((), value)]}


def _checks(context: FleetContext) -> Samples:
    found: Samples = {}
    for record in context.fleet.checks(1):
        labels = (record.verdict, record.reason.partition(":")[0])
        found["rebalance_last_check_timestamp_seconds"] = [(labels, record.at.timestamp())]
    for chore in ("sweep", "cleanup"):
        last = context.fleet.last_chore(chore)
        found |= _known(f"rebalance_last_{chore}_timestamp_seconds", None if last is None else last.at.timestamp())
    return found


def _workers(context: FleetContext, now_ms: int, own: str) -> Samples:
    same = [worker.digest == own for worker in context.presence.living(now_ms=now_ms)]
    return {"rebalance_workers": [(("yes",), sum(same)), (("no",), len(same) - sum(same))]}
