"""A job as callers see it, from the fields in Redis: status, counts, causes, throughput and ETA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rebalance_tasks.core.models import RebalanceJob
from rebalance_tasks.core.states import TERMINAL, RebalanceStatus
from rebalance_tasks.store.progress import Progress, rates
from rebalance_tasks.store.records import from_ms

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

#: `cancelled_by` of a job that the sweep cancelled begins so.
DEADLINE = "deadline"


def job_view(
    fleet: str,
    job_id: str,
    fields: Mapping[str, bytes],
    *,
    now: datetime,
    reasons: set[str],
    causes: Mapping[str, int],
) -> RebalanceJob:
    """Build the model from a job's raw fields, its pause reasons, and how many moves ended for which cause."""

    def number(name: str) -> int:
        return int(fields.get(name, b"0"))

    def ratio(name: str) -> float | None:
        return float(fields[name]) if name in fields else None

    def text(name: str) -> str:
        return fields.get(name, b"").decode()

    status = RebalanceStatus(text("status"))
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
