"""What a check saw and made, and what is kept of it: a sentence for its record, a snapshot for an audit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rebalance_tasks.store.snapshots import NodeSnapshot, Snapshot

if TYPE_CHECKING:
    from datetime import datetime

    from rebalance_tasks.control.survey import Survey
    from rebalance_tasks.core.models import CheckResult, RebalancePlan


@dataclass(slots=True)
class Trace:
    """What a check has seen and made so far, whatever comes of it."""

    seen: Survey | None = None
    plan: RebalancePlan | None = None
    #: the plan is an earlier one, which still stands
    again: bool = False

    def summary(self, plan: RebalancePlan) -> str:
        """Return what a plan of this check does and lacks, in a line."""
        spread = f"imbalance {plan.imbalance_before:.3f} → {plan.imbalance_after:.3f}"
        left_out = self.seen.left_out if self.seen is not None else {}
        without = f"; left out: {', '.join(left_out.values())}" if left_out else ""
        lost = sorted({attribute for pair in plan.not_carried.values() for attribute in pair})
        losing = f"; not carried: {', '.join(lost)}" if lost else ""
        since = ""
        if self.again:
            since = f"; nothing has changed since it was planned at {plan.created_utc:%Y-%m-%d %H:%M:%S} UTC"
        return f"{len(plan.moves)} moves, {plan.estimated_egress_bytes} bytes, {spread}{losing}{without}{since}"

    def snapshot(self, at: datetime, result: CheckResult, spread: float | None, *, forced: bool) -> Snapshot:
        """Put down what the check saw and decided.

        Args:
            at: when it ended.
            result: what it decided.
            spread: the imbalance it saw, if it came that far.
            forced: whether it was to plan even under the threshold.
        """
        return Snapshot(
            at=at,
            verdict=result.verdict,
            reason=result.reason,
            forced=forced,
            plan_id=result.plan_id,
            imbalance_before=spread,
            **self._seen(),
            **self._planned(),
        )

    def _seen(self) -> dict[str, Any]:
        seen = self.seen
        if seen is None:
            return {}
        used = seen.used_bytes
        nodes = tuple(
            NodeSnapshot(
                node_id=node.node_id,
                pool=node.pool,
                state=node.state,
                used_bytes=used[node.node_id],
                capacity_bytes=node.capacity_bytes or 0,
            )
            for node in seen.nodes
        )
        return {"nodes": nodes, "left_out": dict(seen.left_out), "objects": seen.objects}

    def _planned(self) -> dict[str, Any]:
        plan = self.plan
        if plan is None:
            return {}
        return {
            "imbalance_after": plan.imbalance_after,
            "moves": len(plan.moves),
            "bytes": plan.estimated_egress_bytes,
            "cost": plan.estimated_cost,
            "limits": plan.limits_reached,
            "not_moved": dict(plan.not_moved),
            "cannot": plan.cannot,
        }
