"""Every metric that `rebalance metrics` serves: its name, kind, labels and meaning.

Counters end in ``_total``, times in ``_seconds``, sizes in ``_bytes``, shares in ``_ratio``; what merely counts things that
are there now is named after them. All bear the label ``fleet``; the others take few values, or one for each node.
`docs/reference/metrics.md` is held against this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["gauge", "counter", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; ``labels`` leave out the fleet."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


METRICS: Final = (
    # the fleet
    Metric("rebalance_redis_up", "gauge", "1 while Redis answers; nothing else is served while it does not."),
    Metric("rebalance_imbalance_ratio", "gauge", "Highest minus lowest utilisation of active nodes.", ("pool",)),
    Metric("rebalance_imbalance_threshold_ratio", "gauge", "Imbalance at which a check plans."),
    Metric("rebalance_paused", "gauge", "1 for each reason for which the fleet or its job is paused.", ("reason",)),
    Metric("rebalance_workers", "gauge", "Workers that have published their configuration within 30 s.", ("same",)),
    Metric("rebalance_forwardings", "gauge", "Forwarding entries that readers are sent by."),
    # nodes
    Metric("rebalance_node_utilisation_ratio", "gauge", "Used by capacity.", ("node", "pool", "zone")),
    Metric("rebalance_node_used_bytes", "gauge", "Bytes of objects, without temp and trash.", ("node",)),
    Metric("rebalance_node_capacity_bytes", "gauge", "Capacity, as configured or as last surveyed.", ("node",)),
    Metric("rebalance_node_reserved_bytes", "gauge", "Promised to running groups; absent when none.", ("node",)),
    Metric("rebalance_node_trash_bytes", "gauge", "Freed and still in the trash; absent when none.", ("node",)),
    Metric("rebalance_node_state", "gauge", "1 for the state a node is in, if not active.", ("node", "state")),
    Metric("rebalance_node_held", "gauge", "1 for each owner who holds a node.", ("node", "owner")),
    # moves and jobs
    Metric("rebalance_moves_total", "counter", "Moves that ended.", ("outcome",)),
    Metric("rebalance_move_causes_total", "counter", "Moves that failed or were skipped, by cause.", ("cause",)),
    Metric("rebalance_moved_bytes_total", "counter", "Bytes of completed moves."),
    Metric("rebalance_egress_bytes_total", "counter", "Bytes booked on the egress budget, retries included."),
    Metric("rebalance_cost_total", "counter", "Money booked on the cost budget."),
    Metric("rebalance_jobs_total", "counter", "Jobs that ended.", ("status",)),
    Metric("rebalance_job_duration_seconds", "histogram", "From creation to the end of a job, pauses included."),
    Metric("rebalance_job_active", "gauge", "1 while a job is active, by its status.", ("status",)),
    Metric("rebalance_job_moves", "gauge", "Moves of the active job.", ("state",)),
    Metric("rebalance_job_left_bytes", "gauge", "Bytes that the active job has still to move."),
    Metric("rebalance_job_eta_seconds", "gauge", "Time left at the pace of the last minute; absent if unknown."),
    Metric("rebalance_job_idle_seconds", "gauge", "Since the running job last came on; absent while none runs."),
    # throttle, permits, queues
    Metric("rebalance_throttle_rate_bytes", "gauge", "Bytes a second of each group; +Inf: no throttle.", ("reason",)),
    Metric(
        "rebalance_node_rate_bytes",
        "gauge",
        "Bytes a second at which a node may be worked; +Inf: no limit.",
        ("node", "direction", "reason"),
    ),
    Metric(
        "rebalance_node_latency_seconds",
        "gauge",
        "Mean time of a node's calls (adaptive_throttle).",
        ("node", "direction"),
    ),
    Metric("rebalance_permits_held", "gauge", "Groups that hold a permit."),
    Metric("rebalance_permits_limit", "gauge", "Groups that may transfer at once.", ("reason",)),
    Metric("rebalance_groups_waiting", "gauge", "Groups of the active job without a permit.", ("reason",)),
    Metric("rebalance_queue_messages", "gauge", "Messages that wait on the broker.", ("queue",)),
    # checks, chores, trash
    Metric("rebalance_checks_total", "counter", "Checks, by verdict.", ("verdict",)),
    Metric("rebalance_last_check_timestamp_seconds", "gauge", "When the last check ran.", ("verdict", "reason")),
    Metric("rebalance_last_sweep_timestamp_seconds", "gauge", "When the last sweep ended."),
    Metric("rebalance_last_cleanup_timestamp_seconds", "gauge", "When the last cleanup ended."),
    Metric("rebalance_trash_records", "gauge", "Records of freed sources that wait to be purged."),
    Metric("rebalance_trash_overdue_records", "gauge", "Of these, due for more than ten minutes."),
    # tasks and notices
    Metric("rebalance_tasks_total", "counter", "Tasks that ended in workers.", ("task", "ended")),
    Metric("rebalance_task_duration_seconds", "histogram", "How long tasks took.", ("task",)),
    Metric("rebalance_notices_total", "counter", "Webhook deliveries.", ("result",)),
)
