"""A job as callers see it, from the fields in Redis: status, counts, causes, throughput and ETA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rebalance_tasks.core.models import RebalanceJob
from rebalance_tasks.core.states import TERMINAL, RebalanceStatus
from rebalance_tasks.store.records import from_ms

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


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
    moved, total = number("bytes_moved"), number("total_bytes")
    elapsed = ((completed or now) - started).total_seconds() if started else 0.0
    throughput = moved / elapsed if elapsed > 0 else 0.0
    running = status is RebalanceStatus.RUNNING
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
        "total_bytes": total,
        "bytes_moved": moved,
        "throughput": throughput,
        "eta": max(0, total - moved) / throughput if running and throughput > 0 else None,
        "imbalance_before": ratio("imbalance_before"),
        "imbalance_after": ratio("imbalance_after"),
        "error": text("error") or None,
        "requested_by": text("requested_by"),
        "cancel_requested": text("cancel_requested") == "1",
        "paused_reasons": () if status in TERMINAL else tuple(reasons),
        "failures": dict(causes),
        "groups_total": number("groups_total"),
        "groups_done": number("groups_done"),
    }
    return RebalanceJob.model_validate(values)
