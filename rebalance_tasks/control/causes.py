"""Why moves fail or are skipped, grouped, each with an example and the way out.

Every cause that the code can note has its line in `HINTS`; a test reads the causes off the code and misses none.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.models import FailureGroup

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rebalance_tasks.control.context import StateContext
    from rebalance_tasks.core.models import RebalanceJob

_REPLAN: Final = "nothing to mend: the next check plans with what is there now"
_RETRY: Final = "`rebalance retry-failed JOB` tries again"

#: cause → what an operator does about it
HINTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        # one object
        "source_vanished": "somebody deleted or renamed it; " + _REPLAN,
        "source_changed": "it is being written to; raise min_object_age, or pause the writer, then " + _RETRY,
        "unreadable": "give the workers' user read access to it and write access to its folder, then " + _RETRY,
        "target_exists": "compare it with the object on the target and remove or rename one of the two, then " + _RETRY,
        "checksum_mismatch": "what arrived is not what was read: look at the disks, memory and cables of both nodes "
        "(dmesg, SMART), then " + _RETRY,
        "invalid_key": "rename the object: its name does not fit the target",
        "conflict": "source and target were both written to; compare the two by hand, nothing was removed",
        "catalogue_refused": "the host's catalogue keeps the object elsewhere: ask the host why, then " + _RETRY,
        "catalogue_unreachable": "see that the host's catalogue is up (`rebalance doctor`), then " + _RETRY,
        "too_large": "the target takes no file of that size: another file system, or a higher limit (ulimit -f), then "
        + _RETRY,
        "store_refused": "read what the store says of the example, then " + _RETRY,
        "worker_died": "read the workers' logs (memory? a failing disk?), then " + _RETRY,
        "move": "read what is said of the example, then " + _RETRY,
        # a node
        "target_full": "make room on the target or add a node, then plan again: `rebalance check`",
        "node_missing": "mount the node (`rebalance nodes`, `rebalance doctor`), then " + _RETRY,
        "node_not_writable": "give the workers' user write access to the node's root, then " + _RETRY,
        "node": "look at the node: `rebalance doctor`; then " + _RETRY,
        "unknown_node": "a worker's rebalance.toml lacks the node: give all the same file, restart, then " + _RETRY,
        # budgets and flags
        "budget_egress": "max_egress_bytes_per_cycle is spent; raise it, or let the next cycle go on",
        "budget_cost": "max_cost_per_cycle is spent; raise it, or let the next cycle go on",
        "budget_cost_day": "max_cost_per_day is spent; raise it, or go on tomorrow",
        "cancelled": "the job was stopped; `rebalance retry-failed JOB --skipped` carries the rest out after all",
        # the plan was older than the fleet
        "stale_plan_unknown_node": "the node is no longer configured; " + _REPLAN,
        "stale_plan_invalid": "source and target are one node, or of different pools; " + _REPLAN,
        "stale_plan_unreachable": "no host reaches both nodes any more, see `queue` of [[nodes]]; " + _REPLAN,
        "stale_plan_node_state": "a node was drained or taken into maintenance; " + _REPLAN,
        "stale_plan_duplicate": "the plan held the object twice; make plans with `rebalance plan`",
        "stale_plan_source_gone": "it was deleted or moved before the job began; " + _REPLAN,
        "stale_plan_source_changed": "it was written to before the job began; " + _REPLAN,
        "stale_plan_ambiguous": "another node holds an object of that name; remove or rename one of the two",
        "stale_plan_protected": "it became hot, or gravity_protection_threshold was lowered, since the plan was made; "
        + _REPLAN,
        "stale_plan_pinned": "a rule pins it since; " + _REPLAN,
        "stale_plan_too_small": "min_object_size was raised since; " + _REPLAN,
        "stale_plan_too_young": "it was written to within min_object_age; " + _REPLAN,
        "stale_plan_cooldown": "it was moved within object_cooldown; " + _REPLAN,
        "stale_plan_requirements": "a rule asks for a node of another region, storage class or tag since; " + _REPLAN,
        "stale_plan_replicas_apart": "the target's host holds a replica of it since; " + _REPLAN,
        "stale_plan_excluded": "a node's include or exclude patterns leave it alone since; " + _REPLAN,
        "stale_plan_invalid_key": "rename the object: its name is no valid key",
        "stale_plan_node_missing": "mount the node (`rebalance nodes`), then check again: `rebalance check`",
        "stale_plan_unreadable": "give the workers' user read access to it, then check again: `rebalance check`",
        # the job or the program
        "free_pending": "its copy is where readers look, the old one waits: bring the source's node back, cleanup does the rest",
        "state_lost": "Redis lost part of the job: `rebalance reindex`, then `rebalance check`",
        "unexpected_error": "a defect: the workers' logs have its trace; please report it, then " + _RETRY,
        "configuration": "put the setting right that the example names, restart the workers, then " + _RETRY,
        "invalid_argument": "read what is said of the example; " + _REPLAN,
        "permanent": "read what is said of the example, then " + _RETRY,
        "retryable": _RETRY,
        "error": "read what is said of the example, then " + _RETRY,
    },
)
#: Said of a cause that this version does not know (a worker of another one noted it).
UNKNOWN: Final = "read what is said of the example and the workers' logs, then " + _RETRY


def hint(cause: str, *, job_id: str = "JOB") -> str:
    """What to do about a cause."""
    return HINTS.get(cause, UNKNOWN).replace("JOB", job_id)


def failure_groups(context: StateContext, job: RebalanceJob) -> list[FailureGroup]:
    """The failed and skipped moves of a job by cause, most frequent first, each cause with an example."""
    if not job.failures:
        return []
    examples = context.outcomes.examples(job.job_id)
    moves = context.outcomes.moves(job.job_id, {outcome.index for outcome in examples.values()})
    groups: list[FailureGroup] = []
    for cause, count in sorted(job.failures.items(), key=lambda item: (-item[1], item[0])):
        outcome = examples.get(cause)
        move = None if outcome is None else moves.get(outcome.index)
        groups.append(
            FailureGroup(
                cause=cause,
                moves=count,
                hint=hint(cause, job_id=job.job_id),
                object_key="" if move is None else move.key,
                source_node="" if move is None else move.group.source,
                target_node="" if move is None else move.group.target,
                detail="" if outcome is None else outcome.detail,
            )
        )
    return groups
