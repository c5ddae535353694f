"""A job as callers see it, from the fields in Redis: status, counts, causes, throughput and ETA."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from rebalance_tasks.core.models import RebalanceJob
from rebalance_tasks.core.states import TERMINAL, RebalanceStatus
from rebalance_tasks.store.progress import Progress, rates
from rebalance_tasks.store.records import from_ms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

#: Reason to pause of a group whose node is held, before the node's id.
NODE: Final = "node:"
#: `cancelled_by` of a job that the sweep cancelled begins so.
DEADLINE = "deadline"


@dataclass(frozen=True, slots=True)
class Holds:
    """A job's open groups, and which of them wait for a held node.

    Attributes:
        open: groups that are not terminal.
        held: those of them that touch a held node.
        by_node: node id → its held groups.
    """

    open: int = 0
    held: int = 0
    by_node: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, reply: Sequence[Any]) -> Self:
        """Read what ``job_holds.lua`` returns."""
        if not reply:
            return cls()
        groups, held, *nodes = reply
        by_node = {node.decode(): int(n) for node, n in zip(nodes[::2], nodes[1::2], strict=True)}
        return cls(int(groups), int(held), by_node)

    @property
    def everything(self) -> bool:
        """Whether nothing of the job can go on."""
        return 0 < self.open == self.held


def job_view(
    fleet: str,
    job_id: str,
    fields: Mapping[str, bytes],
    *,
    now: datetime,
    reasons: set[str],
    causes: Mapping[str, int],
    holds: Holds,
) -> RebalanceJob:
    """Build the model from a job's raw fields, its pause reasons, its causes with their counts, and its held groups.

    A job of which every open group is held is paused, whatever its own field says: nothing of it moves.
    """

    def number(name: str) -> int:
        return int(fields.get(name, b"0"))

    def ratio(name: str) -> float | None:
        return float(fields[name]) if name in fields else None

    def text(name: str) -> str:
        return fields.get(name, b"").decode()

    status = RebalanceStatus(text("status"))
    if status in TERMINAL or text("cancel_requested") == "1":
        holds = Holds()  # a cancel winds up what is held as well
    elif holds.everything:
        status = RebalanceStatus.PAUSED
        reasons = reasons | {NODE + node for node in holds.by_node}
    created, started, completed = (from_ms(fields.get(f"{name}_ms")) for name in ("created", "started", "completed"))
    cancelled_by = text("cancelled_by")
    values: dict[str, Any] = {
        "job_id": job_id,
        "plan_id": text("plan_id"),
        "fleet": fleet,
        "status": status,
        "created_utc": created,
        "started_utc": started,
        "completed_utc": completed,
        "total_moves": number("total"),
        "completed_moves": number("completed"),
        "failed_moves": number("failed"),
        "skipped_moves": number("skipped"),
        "total_bytes": number("total_bytes"),
        "bytes_moved": number("bytes_moved"),
        **_pace(fields, status, now_ms=int(now.timestamp() * 1000)),
        "imbalance_before": ratio("imbalance_before"),
        "imbalance_after": ratio("imbalance_after"),
        "error": text("error") or (cancelled_by if cancelled_by.startswith(DEADLINE) else None),
        "requested_by": text("requested_by"),
        "cancel_requested": text("cancel_requested") == "1",
        "cancelled_by": cancelled_by,
        "paused_reasons": () if status in TERMINAL else tuple(reasons),
        "held_groups": {NODE + node: count for node, count in sorted(holds.by_node.items())},
        "failures": dict(causes),
        "groups_total": number("groups_total"),
        "groups_done": number("groups_done"),
    }
    return RebalanceJob.model_validate(values)


def _pace(fields: Mapping[str, bytes], status: RebalanceStatus, *, now_ms: int) -> dict[str, float | None]:
    """Throughput and time left: at the pace of the last minute, else (none seen yet) at that of the whole run."""
    at = Progress.of(fields, now_ms=now_ms)
    overall = at.mean()
    if status is not RebalanceStatus.RUNNING:
        return {"throughput": overall.bytes_per_s if status in TERMINAL else 0.0, "eta": None}
    recent = rates(at, fields.get("samples", b""))
    # Nothing ended within the minute: a large object is on its way, or everything stands still; the mean says how it went
    # before, and sinks while it stays so.
    pace = recent if recent is not None and recent.moves_per_s > 0 else overall
    throughput = overall.bytes_per_s if recent is None else recent.bytes_per_s
    return {"throughput": throughput, "eta": pace.time_left_s(bytes_left=at.bytes_left, moves_left=at.moves_left)}
