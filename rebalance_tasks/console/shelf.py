"""Plans that somebody looks at: a page of moves must not unpack ten thousand of them each time.

A plan never changes while it is kept, so a copy is as good as what Redis has; whether it is still kept is asked by those
who start it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from rebalance_tasks.core.errors import PlanNotFound

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebalance_tasks.client import Rebalancer
    from rebalance_tasks.core.models import RebalancePlan

#: Whole plans: 10,000 moves are about 10 MB.
MOST_PLANS: Final = 3
#: Plans without their moves.
MOST_FACTS: Final = 200
#: A plan that was replaced under its id (a retry asked for again) shows after this.
FRESH_S: Final = 60.0


class PlanShelf:
    """Keeps the plans looked at last; used by several threads."""

    def __init__(self, client: Rebalancer, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._lock = threading.Lock()
        self._plans: OrderedDict[str, tuple[float, RebalancePlan]] = OrderedDict()
        self._facts: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def plan(self, plan_id: str) -> RebalancePlan:
        """Return a plan. Raises: PlanNotFound."""
        with self._lock:
            at, plan = self._plans.get(plan_id, (float("-inf"), None))
        if plan is not None and self._clock() - at < FRESH_S:
            return plan
        plan = self._client.load_plan(plan_id)
        with self._lock:
            self._plans[plan_id] = self._clock(), plan
            _trim(self._plans, MOST_PLANS)
        return plan

    def facts(self, plan_id: str) -> dict[str, Any] | None:
        """Return what a list says of a plan: its fields, and the number of its moves; ``None`` when it is gone."""
        with self._lock:
            known = self._facts.get(plan_id)
        if known is None:
            try:
                plan = self._client.load_plan(plan_id)
            except PlanNotFound:
                return None
            known = {**plan.model_dump(mode="json", exclude={"moves", "not_moved"}), "moves": len(plan.moves)}
            with self._lock:
                self._facts[plan_id] = known
                _trim(self._facts, MOST_FACTS)
        return known


def _trim(shelf: OrderedDict[str, Any], most: int) -> None:
    while len(shelf) > most:
        shelf.popitem(last=False)
