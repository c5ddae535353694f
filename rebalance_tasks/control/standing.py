"""A plan that still stands: where nothing has changed since it was made, a check says so instead of making it again.

survey ─▶ **standing** ─▶ the earlier plan, or None: then plan ─▶ **note**

A plan follows from the nodes, from what lies on them, from the settings and from what was asked; a survey that can tell all of that
apart carries it in its ``basis``. What passes by itself (cooldowns, young objects) makes a survey that cannot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebalance_tasks.control.surveying.round import keep_ms
from rebalance_tasks.core.errors import PlanNotFound

if TYPE_CHECKING:
    from decimal import Decimal

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.control.survey import Survey
    from rebalance_tasks.core.models import RebalancePlan


def basis_of(context: FleetContext, seen: Survey, *, force: bool, left_today: Decimal | None) -> str:
    """Return what a plan for this survey follows from, as a word; empty where that cannot be told."""
    # Objects that were moved lately come out of their cooldown one by one.
    if not seen.basis or context.connection.client.exists(context.keys.moved):
        return ""
    return f"{seen.basis} {force} {left_today}"


def standing(context: FleetContext, basis: str) -> RebalancePlan | None:
    """Return the plan that was made of this, unless it is gone or somebody has started it."""
    found = context.surveys.planned(basis)
    if found is None:
        return None
    plan, moves = found
    if not moves:
        return plan
    if context.jobs.exists(f"rebal-{plan.plan_id}"):
        return None
    try:
        return context.plans.load(plan.plan_id)
    except PlanNotFound:
        return None


def note(context: FleetContext, basis: str, plan: RebalancePlan) -> None:
    """Keep in mind of what a plan was made, as long as the findings are kept."""
    if basis:
        context.surveys.note_planned(basis, plan, keep_ms=keep_ms(context))
