"""Plans in Redis: written once under a fencing token, kept for a limited time."""

from __future__ import annotations

import json
import zlib
from datetime import timedelta
from typing import TYPE_CHECKING, Final, cast

from pydantic import ValidationError

from rebalance_tasks.core.errors import InvalidArgument, PlanNotFound, StaleLease
from rebalance_tasks.core.models import RebalancePlan
from rebalance_tasks.lazily import module
from rebalance_tasks.store.versions import STAMP, VERSIONS, require_known, upgraded

if TYPE_CHECKING:
    from rebalance_tasks.core import move_columns
    from rebalance_tasks.core.move_columns import MoveColumns
    from rebalance_tasks.store import packed_moves
    from rebalance_tasks.store.connection import Connection
    from rebalance_tasks.store.keys import FleetKeys
else:
    # Loaded when first used: who asks for a job's status waits for neither Arrow nor NumPy.
    move_columns, packed_moves = map(
        module, ("rebalance_tasks.core.move_columns", "rebalance_tasks.store.packed_moves")
    )

#: A plan is worth looking at for a week; it is re-verified before it runs.
PLAN_TTL: Final = timedelta(days=7)


class PlanStore:
    """Plans of a fleet."""

    def __init__(self, connection: Connection, keys: FleetKeys) -> None:
        """Bind to a fleet's keys."""
        self._redis = connection
        self._keys = keys

    def save(self, plan: RebalancePlan, *, fence: int | None) -> MoveColumns:
        """Keep a plan; return its moves as they are kept.

        Args:
            plan: whose ``plan_id`` names it; saving it again replaces it.
            fence: token of the check that made it, ``None`` for an operator's own plan.

        Raises:
            StaleLease: another check has taken over.
            InvalidArgument, InvalidInventory: a move holds what cannot be kept.
        """
        meta = json.dumps({STAMP: VERSIONS["plan"], **plan.model_dump(mode="json", exclude={"moves"})})
        moves = move_columns.MoveColumns.of(plan.moves)
        args: list[str | bytes | int | float] = [
            "" if fence is None else fence,
            plan.plan_id,
            int(PLAN_TTL.total_seconds() * 1000),
            meta,
            *packed_moves.pack_moves(moves),
        ]
        keys = [self._keys.plan(plan.plan_id), self._keys.plans, self._keys.check_lock]
        if self._redis.run("plan_save", keys, args) == b"stale":
            msg = f"plan {plan.plan_id} was not saved: another check has taken over; run `rebalance check` again"
            raise StaleLease(msg)
        return moves

    def load(self, plan_id: str) -> RebalancePlan:
        """Read a plan back. Raises: NewerVersion; PlanNotFound (also when what is stored is no plan)."""
        plan, moves = self.load_columns(plan_id)
        return plan.model_copy(update={"moves": moves.to_moves()})

    def load_columns(self, plan_id: str) -> tuple[RebalancePlan, MoveColumns]:
        """Read a plan without moves, and its moves as columns. Raises: as `load`."""
        raw = self._redis.hgetall(self._keys.plan(plan_id))
        if "meta" not in raw:
            raise PlanNotFound(plan_id)
        try:
            meta = json.loads(raw["meta"])
            # Before the moves are looked at: a newer form may pack them in another way.
            form = require_known("plan", meta.get(STAMP))
            chunks = [raw[f"moves:{n}"] for n in range(int(raw["chunks"]))]
            moves = packed_moves.unpack(chunks, form=form)
            plan = upgraded("plan", meta)
            del plan[STAMP]
            return RebalancePlan.model_validate(plan), moves
        except (KeyError, ValueError, AttributeError, ValidationError, InvalidArgument, zlib.error) as exc:
            raise PlanNotFound(plan_id) from exc

    def exists(self, plan_id: str) -> bool:
        """Whether the plan is kept."""
        return bool(self._redis.client.exists(self._keys.plan(plan_id)))

    def newest(self, limit: int = 20) -> list[str]:
        """Ids of the newest plans."""
        raw = cast("list[bytes]", self._redis.client.zrevrange(self._keys.plans, 0, limit - 1))
        return [entry.decode() for entry in raw]
