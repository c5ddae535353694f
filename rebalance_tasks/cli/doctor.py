"""``rebalance doctor``: is everything as it should be? Each finding says what to do next."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from rich.text import Text

from rebalance_tasks.cli.tables import seconds, table
from rebalance_tasks.core.masking import masked_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rich.console import RenderableType

    from rebalance_tasks.client import NodeReport, Rebalancer
    from rebalance_tasks.store.fleet import ChoreRecord

Verdict = Literal["ok", "warn", "fail"]
STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "bold red"}
PING_TIMEOUT_S: Final = 1.5
#: The chores that beat starts, and how long ago each may have run at most: several turns missed, not one.
CHORES: Final = {"sweep": timedelta(minutes=1), "cleanup": timedelta(minutes=10)}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    detail: str


def examine(client: Rebalancer) -> list[Finding]:
    """Look at Redis, the workers and the nodes.

    Returns:
        one finding for each thing looked at; what cannot be looked at is itself a finding.
    """
    redis_findings = _guarded("redis", lambda: examine_redis(client.settings.redis_url))
    if any(finding.name == "redis" and finding.verdict == "fail" for finding in redis_findings):
        return redis_findings
    return [
        *redis_findings,
        *_guarded("workers", lambda: [examine_workers(seen_workers())]),
        *_guarded("sweep", lambda: [examine_chore(name, client.last_chore(name)) for name in CHORES]),
        *_guarded("nodes", lambda: examine_nodes(client.nodes())),
        *_guarded("configuration", lambda: [examine_digest(client.checks(limit=1))]),
    ]


def _guarded(name: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return look()
    except Exception as exc:  # noqa: BLE001  whatever goes wrong here is what the operator asked about
        return [Finding(name, "fail", str(exc) or type(exc).__name__)]


def examine_redis(url: str) -> list[Finding]:
    """Reachable, durable, and not forgetting."""
    from redis import RedisError  # noqa: PLC0415

    from rebalance_tasks.store.connection import connect  # noqa: PLC0415

    shown = masked_url(url)
    with connect(url) as client:
        try:
            info: dict[str, Any] = client.info()
        except RedisError as exc:
            return [Finding("redis", "fail", f"{shown} does not answer ({exc}); start it, or set redis_url in [fleet]")]
    return [
        Finding(
            "redis", "ok", f"{shown} answers (version {info.get('valkey_version', info.get('redis_version', '?'))})"
        ),
        judge_durability(info),
        judge_eviction(str(info.get("maxmemory_policy", "unknown"))),
    ]


def judge_durability(info: dict[str, Any]) -> Finding:
    """Jobs and locations live in Redis: without the append-only file they die with it."""
    if int(info.get("aof_enabled", 0)):
        return Finding("durability", "ok", "the append-only file is on")
    return Finding(
        "durability", "warn", "the append-only file is off: a crash of Redis loses jobs; set `appendonly yes`"
    )


def judge_eviction(policy: str) -> Finding:
    """Any policy but noeviction may throw away a running job."""
    if policy == "noeviction":
        return Finding("eviction", "ok", "noeviction")
    return Finding(
        "eviction", "fail", f"maxmemory-policy is {policy}: Redis may drop a running job; set it to noeviction"
    )


def seen_workers() -> list[str]:
    """Names of the workers that answer."""
    from rebalance_tasks.celery import app  # noqa: PLC0415

    answers: list[dict[str, Any]] = app.control.ping(timeout=PING_TIMEOUT_S)
    return sorted(name for answer in answers for name in answer)


def examine_workers(names: Sequence[str]) -> Finding:
    """Without a worker nothing moves."""
    if names:
        return Finding("workers", "ok", f"{len(names)} answering: {', '.join(names)}")
    return Finding("workers", "fail", "none answers; start one with `celery -A rebalance_tasks worker`")


def examine_nodes(reports: Iterable[NodeReport]) -> list[Finding]:
    """Every node is there, is itself, and can be written to."""
    advice = {
        "unadopted": "run `rebalance nodes --adopt` if its URL is right",
        "missing": "is it mounted?",
        "not_writable": "check its permissions",
    }
    findings = []
    for report in reports:
        if report.status == "ok":
            findings.append(Finding(f"node {report.node.node_id}", "ok", masked_url(report.node.url)))
            continue
        verdict: Verdict = "warn" if report.status in {"unadopted", "maintenance"} else "fail"
        detail = f"{report.status}: {report.detail or advice.get(report.status, '')}"
        findings.append(Finding(f"node {report.node.node_id}", verdict, detail))
    return findings or [Finding("nodes", "fail", "none configured; add [[nodes]] to rebalance.toml")]


def examine_digest(checks: Sequence[Any]) -> Finding:
    """Workers that run with different configurations make `check` refuse to plan; its last word tells."""
    if not checks:
        return Finding("checks", "warn", "no check has run yet; is beat running (`celery -A beat_schedule beat`)?")
    reason = str(checks[0].get("reason", ""))
    if "digest" in reason or "config" in reason:
        return Finding("configuration", "fail", f"the last check refused to plan: {reason}")
    return Finding("checks", "ok", f"last: {checks[0].get('verdict', '?')} ({reason})")


def examine_chore(name: str, record: ChoreRecord | None, *, now: datetime | None = None) -> Finding:
    """When a periodic chore last ran, and what it did."""
    beat = "is beat running (`celery -A beat_schedule beat`), and a worker for rebalance.control?"
    if record is None:
        return Finding(name, "warn", f"it never ran; {beat}")
    age = (now or datetime.now(tz=UTC)) - record.at
    did = ", ".join(f"{what} {count}" for what, count in sorted(record.did.items())) or "nothing to do"
    told = f"ran {seconds(max(0.0, age.total_seconds()))} ago: {did}"
    return Finding(name, "warn", f"{told}; {beat}") if age > CHORES[name] else Finding(name, "ok", told)


def findings_table(findings: Iterable[Finding]) -> RenderableType:
    """All findings, a line each."""
    made = table("", "WHAT", "FOUND")
    for finding in findings:
        made.add_row(Text(finding.verdict, style=STYLES[finding.verdict]), finding.name, Text(finding.detail))
    return made
