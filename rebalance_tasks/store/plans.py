"""Plans in Redis: written once under a fencing token, kept for a limited time."""

from __future__ import annotations

import json
import zlib
from datetime import timedelta
from typing import TYPE_CHECKING, Final, cast

from pydantic import ValidationError

from rebalance_tasks.core.errors import PlanNotFound, StaleLease
from rebalance_tasks.core.models import RebalancePlan
from rebalance_tasks.store.records import pack_moves, unpack_moves
from rebalance_tasks.store.versions import STAMP, VERSIONS, require_known, upgraded

if TYPE_CHECKING:
    from rebalance_tasks.store.connection import Connection
    from rebalance_tasks.store.keys import FleetKeys

#: A plan is worth looking at for a week; it is re-verified before it runs.
PLAN_TTL: Final = timedelta(days=7)


class PlanStore:
    """Plans of a fleet."""

    def __init__(self, connection: Connection, keys: FleetKeys) -> None:
        """Bind to a fleet's keys."""
        self._redis = connection
        self._keys = keys

    def save(self, plan: RebalancePlan, *, fence: int | None) -> None:
        """Keep a plan.

        Args:
            plan: whose ``plan_id`` names it; saving it again replaces it.
            fence: token of the check that made it, ``None`` for an operator's own plan.

        Raises:
            StaleLease: another check has taken over.
        """
        meta = json.dumps({STAMP: VERSIONS["plan"], **plan.model_dump(mode="json", exclude={"moves"})})
        args: list[str | bytes | int | float] = [
            "" if fence is None else fence,
            plan.plan_id,
            int(PLAN_TTL.total_seconds() * 1000),
            meta,
            *pack_moves(plan.moves),
        ]
        keys = [self._keys.plan(plan.plan_id), self._keys.plans, self._keys.check_lock]
        if self._redis.run("plan_save", keys, args) == b"stale":
            msg = f"plan {plan.plan_id} was not saved: another check has taken over; run `rebalance check` again"
            raise StaleLease(msg)

    def load(self, plan_id: str) -> RebalancePlan:
        """Read a plan back. Raises: NewerVersion; PlanNotFound (also when what is stored is no plan)."""
        raw = self._redis.hgetall(self._keys.plan(plan_id))
        if "meta" not in raw:
            raise PlanNotFound(plan_id)
        try:
            meta = json.loads(raw["meta"])
            # Before the moves are looked at: a newer form may pack them in another way.
            current = require_known("plan", meta.get(STAMP)) == VERSIONS["plan"]
            chunks = [raw[f"moves:{n}"] for n in range(int(raw["chunks"]))]
            moves = (
                unpack_moves(chunks) if current else [m for chunk in chunks for m in json.loads(zlib.decompress(chunk))]
            )
            plan = upgraded("plan", {**meta, "moves": moves})
            del plan[STAMP]
            return RebalancePlan.model_validate(plan)
        except (KeyError, ValueError, AttributeError, ValidationError, zlib.error) as exc:
            raise PlanNotFound(plan_id) from exc

    def exists(self, plan_id: str) -> bool:
        """Whether the plan is kept."""
        return bool(self._redis.client.exists(self._keys.plan(plan_id)))

    def newest(self, limit: int = 20) -> list[str]:
        """Ids of the newest plans."""
        raw = cast("list[bytes]", self._redis.client.zrevrange(self._keys.plans, 0, limit - 1))
        return [entry.decode() for entry in raw]
