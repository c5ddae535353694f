"""Settings that are each allowed and make no sense together."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from rebalance_tasks.control.examining.findings import Finding
from rebalance_tasks.core.models import NodeState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebalance_tasks.settings import Settings

#: Fewer hours than this a day leave a job hardly any time.
LEAST_HOURS: Final = 2
_DAY: Final = 24


def contradictions(settings: Settings) -> list[Finding]:
    """Name every contradiction; one good finding when there is none."""
    found = [Finding("settings", "warn", detail, step) for detail, step in _contradictions(settings)]
    return found or [Finding("settings", "ok", "nothing contradicts itself")]


def _contradictions(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield what is contradictory, and what to do."""
    options = settings.options
    for name in ("max_moves_per_cycle", "max_egress_bytes_per_cycle"):
        if getattr(options, name) == 0:
            yield f"{name} is 0: no plan can hold a move", f"raise {name}, or use mode observe to only look"
    if options.gravity_protection_threshold == 0:
        yield "gravity_protection_threshold is 0: every object is protected", "raise it (0.9 by default)"
    if options.imbalance_threshold == 0:
        yield "imbalance_threshold is 0: every check plans, for ever", "set what you can live with (0.1 by default)"
    if options.max_cost_per_day is not None and options.max_cost_per_day < options.max_cost_per_cycle:
        yield (
            f"max_cost_per_day {options.max_cost_per_day} is below max_cost_per_cycle {options.max_cost_per_cycle}: a cycle is never allowed its budget",
            "raise the one or lower the other",
        )
    per_node = options.max_concurrent_per_node
    if per_node is not None and per_node > options.max_concurrent_migrations:
        yield (
            f"max_concurrent_per_node {per_node} is above max_concurrent_migrations {options.max_concurrent_migrations}: it limits nothing",
            "lower it, or leave it out",
        )
    if options.quiet_hours is not None:
        start, end = options.quiet_hours
        left = _DAY - (end - start) % _DAY
        if left < LEAST_HOURS:
            yield f"quiet hours leave {left} h a day", "shorten them; jobs would take weeks"
    if options.job_deadline is not None and options.job_deadline < options.grace:
        yield "job_deadline is shorter than grace: jobs end before what they freed", "lengthen job_deadline"
    yield from _of_nodes(settings)


def _of_nodes(settings: Settings) -> Iterator[tuple[str, str]]:
    able = [node for node in settings.nodes if node.state is not NodeState.MAINTENANCE]
    for pool, count in sorted(Counter(node.pool for node in able).items()):
        if count == 1:
            yield f"pool {pool!r} has one node: there is nobody to exchange objects with", "add a node, or another pool"
    for node in settings.nodes:
        if node.weight == 0 and node.state is NodeState.ACTIVE and settings.locator == "crush":
            yield (
                f"node {node.node_id} has weight 0 and is active: placement gives it nothing",
                "drain it, or give it a weight",
            )
