"""The JSON of the HTTP API: plain data from the client's models, with what a page would have to compute added."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from rebalance_tasks.cli.output import jsonable
from rebalance_tasks.core.masking import masked_url
from rebalance_tasks.core.models import NodeState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rebalance_tasks.control.overview import NodeOverview, Overview
    from rebalance_tasks.core.models import RebalanceJob, RebalanceMove, RebalancePlan
    from rebalance_tasks.core.options import RebalancerOptions
    from rebalance_tasks.settings import Settings


#: Bars of the histogram of utilisation, each five per cent wide.
BARS: Final = 20


def fleet_json(seen: Overview, settings: Settings) -> dict[str, Any]:
    """The fleet in one object, without its nodes."""
    used = sum(entry.used_bytes for entry in seen.nodes)
    capacity = sum(entry.node.capacity_bytes or 0 for entry in seen.nodes)
    options = settings.options
    return {
        "fleet": settings.fleet,
        "mode": settings.mode,
        "active_job": seen.active_job,
        "paused_reasons": list(seen.paused_reasons),
        "surveyed": seen.surveyed,
        "imbalance": seen.imbalance,
        "imbalance_threshold": options.imbalance_threshold,
        "target_imbalance": options.effective_target,
        "used_bytes": used,
        "capacity_bytes": capacity,
        "utilisation": used / capacity if capacity else None,
        "histogram": histogram(entry.utilisation for entry in seen.nodes),
        "awaiting_bytes": sum(entry.awaiting_bytes for entry in seen.nodes),
        "nodes": len(seen.nodes),
        "node_states": {state.value: _count(seen, state) for state in NodeState},
        "troubled_nodes": [e.node.node_id for e in seen.nodes if e.status in {"missing", "not_writable"}],
        "max_concurrent_migrations": seen.limit,
        "throttle_bytes_per_sec": seen.throttle,
    }


def histogram(shares: Iterable[float | None]) -> list[int]:
    """How many nodes are how full, in `BARS` steps from 0 to 1; overfull ones count in the last, unknown ones nowhere."""
    found = [0] * BARS
    for share in shares:
        if share is not None:
            found[min(BARS - 1, int(share * BARS))] += 1
    return found


def _count(seen: Overview, state: NodeState) -> int:
    return sum(entry.node.state is state for entry in seen.nodes)


def node_json(entry: NodeOverview) -> dict[str, Any]:
    """One node; its storage options are never part of it."""
    node = entry.node
    return {
        **{name: getattr(node, name) for name in ("node_id", "pool", "zone", "rack", "host", "region")},
        "url": masked_url(node.url),
        "state": node.state.value,
        "status": entry.status,
        "detail": entry.detail,
        "used_bytes": entry.used_bytes,
        "capacity_bytes": node.capacity_bytes,
        "utilisation": entry.utilisation,
        "awaiting_bytes": entry.awaiting_bytes,
        "held_by": list(entry.held_by),
    }


def job_json(job: RebalanceJob) -> dict[str, Any]:
    """One job, as ``rebalance status --json`` prints it, without its failure groups."""
    return {**job.model_dump(mode="json"), "terminal": job.status.terminal}


def plan_json(plan: RebalancePlan, options: RebalancerOptions) -> dict[str, Any]:
    """One plan without its moves: what it costs of each budget, and how much flows from where to where."""
    return {
        **plan.model_dump(mode="json", exclude={"moves"}),
        "moves": len(plan.moves),
        "budgets": [
            _budget("moves", "max_moves_per_cycle", len(plan.moves), options),
            _budget("egress", "max_egress_bytes_per_cycle", plan.estimated_egress_bytes, options),
            _budget("cost", "max_cost_per_cycle", plan.estimated_cost, options),
        ],
        "flows": flows(plan.moves),
    }


def _budget(what: str, option: str, used: object, options: RebalancerOptions) -> dict[str, Any]:
    return {"what": what, "option": option, "used": jsonable(used), "limit": jsonable(getattr(options, option))}


def flows(moves: Iterable[RebalanceMove]) -> list[dict[str, Any]]:
    """Moves and bytes of each pair of nodes, most bytes first."""
    count: Counter[tuple[str, str]] = Counter()
    size: Counter[tuple[str, str]] = Counter()
    for move in moves:
        pair = move.source_node, move.target_node
        count[pair] += 1
        size[pair] += move.size_bytes
    return [
        {"source": source, "target": target, "moves": count[source, target], "bytes": total}
        for (source, target), total in sorted(size.items(), key=lambda item: (-item[1], item[0]))
    ]


def move_json(move: RebalanceMove) -> dict[str, Any]:
    """One move; what of its key is no text is escaped."""
    return {name: jsonable(value) for name, value in move}
