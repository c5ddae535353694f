"""The doctor: is everything as it should be? Each finding says what was seen and, if it is not well, what to do next.

It changes nothing. What cannot be looked at is a finding of its own. `docs/reference/doctor.md` lists every finding, and
each has a test that causes it.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from rebalance_tasks.control.examining.findings import Finding, Verdict
from rebalance_tasks.control.examining.redis import examine_redis
from rebalance_tasks.control.examining.settings import contradictions
from rebalance_tasks.control.metering.readings import OVERDUE_MS
from rebalance_tasks.control.surveying.waited import reported
from rebalance_tasks.control.sweep import STUCK_AFTER_S
from rebalance_tasks.core.errors import CatalogueUnreachable, ConfigurationError
from rebalance_tasks.core.masking import masked_url
from rebalance_tasks.core.routes import every_queue, queues_reaching

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.control.survey import NodeReport
    from rebalance_tasks.store.fleet import ChoreRecord

#: The chores that beat starts, and how long ago each may have run at most: several turns missed, not one.
CHORES: Final = {"sweep": timedelta(minutes=1), "cleanup": timedelta(minutes=10)}
BEAT: Final = "start one `celery -A beat_schedule beat`, and see that a worker serves rebalance.control"
#: Ages of files (min_object_age), signatures and certificates are compared across machines.
MOST_SKEW_S: Final = 5.0
#: A check that beat starts may be late by so many of its intervals.
CHECKS_MISSED: Final = 3
#: What a node's status means; any other one is a failure.
_VERDICTS: Final[dict[str, Verdict]] = {"ok": "ok", "unadopted": "warn", "maintenance": "warn"}
#: How large copies reach a node, by `NodeReport.direct`.
_WAYS: Final = {
    None: "",
    True: "; large copies go around the page cache",
    False: "; large copies go through the page cache",
}


def examine(context: FleetContext, ask_workers: Callable[[], Mapping[str, Sequence[str]]]) -> list[Finding]:
    """Look at Redis, the workers, beat, the nodes and the settings; without Redis there is nothing else to look at.

    Args:
        context: the fleet.
        ask_workers: tells which queues each worker that answers takes messages from.
    """
    found = _guarded("redis", lambda: examine_redis(context))
    if any(finding.name == "redis" and finding.verdict == "fail" for finding in found):
        return found
    looks: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("workers", lambda: examine_workers(context, ask_workers())),
        ("configuration", lambda: [examine_digests(context)]),
        ("clock", lambda: [examine_clocks(context)]),
        ("beat", lambda: [examine_chore(name, context.fleet.last_chore(name), now=context.now()) for name in CHORES]),
        ("check", lambda: [examine_check(context)]),
        ("job", lambda: examine_job(context)),
        ("nodes", lambda: _examine_reports(context)),
        ("catalogue", lambda: examine_catalogue(context)),
        ("trash", lambda: [examine_trash(context)]),
        ("settings", lambda: contradictions(context.settings)),
    ]
    return found + [finding for name, look in looks for finding in _guarded(name, look)]


def _guarded(name: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return look()
    except Exception as exc:  # noqa: BLE001  whatever goes wrong here is what the operator asked about
        return [Finding(name, "fail", str(exc) or type(exc).__name__, "mend this, then ask again")]


# -- workers -------------------------------------------------------------------------------------------------------------
def examine_workers(context: FleetContext, serving: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Without a worker nothing moves; without one on each queue something never does."""
    if not serving:
        return [Finding("workers", "fail", "none answers", "start one with `celery -A rebalance_tasks worker`")]
    found = [Finding("workers", "ok", f"{len(serving)} answering: {', '.join(sorted(serving))}")]
    served = {queue for queues in serving.values() for queue in queues}
    for queue in every_queue(context.nodes()):
        if queue in served:
            found.append(Finding(f"queue {queue}", "ok", "served"))
            continue
        nodes = [node.node_id for node in context.nodes() if node.queues and queue in queues_reaching(node)]
        whose = f" (the queue of {', '.join(nodes)})" if nodes else ""
        found.append(
            Finding(
                f"queue {queue}",
                "fail",
                f"no worker serves it{whose}",
                f"start one with `celery -A rebalance_tasks worker --queues {context.settings.broker_queues.named(queue)}`",
            )
        )
    return found


def examine_digests(context: FleetContext) -> Finding:
    """Checks refuse to plan while workers run with different configurations."""
    own = context.settings.digest()
    digests = context.digests()
    others = sorted(worker for worker, digest in digests.items() if digest != own)
    if others:
        return Finding(
            "configuration",
            "fail",
            f"{', '.join(others)} run with another rebalance.toml than this one; checks refuse to plan",
            "give all processes the same file and restart them",
        )
    return Finding("configuration", "ok", f"the same in {len(digests)} workers and here")


def examine_clocks(context: FleetContext) -> Finding:
    """Redis' clock decides; others are compared with it."""
    living = context.presence.living(now_ms=context.connection.now_ms())
    here = abs(time.time() - context.connection.now_ms() / 1000)
    skews = {"this machine": here, **{one.worker: abs(one.skew_ms) / 1000 for one in living}}
    off = [f"{who} by {seconds:.0f} s" for who, seconds in sorted(skews.items()) if seconds > MOST_SKEW_S]
    if off:
        return Finding("clock", "warn", f"differs from Redis': {', '.join(off)}", "set clocks by NTP (chrony)")
    return Finding("clock", "ok", f"within {MOST_SKEW_S:g} s of Redis' on {len(skews)} processes")


# -- beat, checks, the job -------------------------------------------------------------------------------------------------
def examine_chore(name: str, record: ChoreRecord | None, *, now: datetime | None = None) -> Finding:
    """When a periodic chore last ran, and what it did."""
    if record is None:
        return Finding(name, "warn", "it never ran", BEAT)
    age = max(timedelta(0), (now or datetime.now(tz=UTC)) - record.at)
    did = ", ".join(f"{what} {count}" for what, count in sorted(record.did.items())) or "nothing to do"
    told = f"ran {_ago(age)}: {did}"
    return Finding(name, "warn", told, BEAT) if age > CHORES[name] else Finding(name, "ok", told)


def examine_check(context: FleetContext) -> Finding:
    """Whether checks run, and what the last one said."""
    records = context.fleet.checks(1)
    if not records:
        return Finding("check", "warn", "no check has run yet", BEAT)
    last, age = records[0], context.now() - records[0].at
    told = f"last {_ago(age)}: {last.verdict} ({last.reason})"
    if age > CHECKS_MISSED * context.settings.options.check_interval:
        return Finding("check", "warn", told, BEAT)
    return Finding("check", "ok", told)


def examine_job(context: FleetContext) -> list[Finding]:
    """A job that stands still, and who holds it or the fleet."""
    found: list[Finding] = []
    reasons = sorted(context.fleet.paused_reasons())
    if reasons:
        step = "`rebalance resume --all` lifts an operator's pause"
        found.append(Finding("paused", "warn", f"the fleet is paused ({', '.join(reasons)})", step))
    for hold in context.holds.all():
        step = (
            "`rebalance resume --node`" if hold.owner == "operator" else "bring the node back; it is let go by itself"
        )
        found.append(Finding(f"held {hold.node_id}", "warn", f"held ({hold.owner}): its groups wait", step))
    job_id = context.jobs.active()
    idle_s = None if job_id is None else context.progress.idle_s(job_id)
    if idle_s is not None and idle_s >= STUCK_AFTER_S:
        step = f"read the workers' logs (`dmesg` for a disk that hangs); `rebalance cancel {job_id}` is always safe"
        found.append(Finding("job", "fail", f"{job_id} has not come on for {_ago(timedelta(seconds=idle_s))}", step))
    elif job_id is not None:
        found.append(Finding("job", "ok", f"{job_id} is {context.jobs.load(job_id).status.value}"))
    return found


# -- nodes and trash -------------------------------------------------------------------------------------------------------
def _examine_reports(context: FleetContext) -> list[Finding]:
    nodes = reported(context)
    return examine_nodes(nodes) + (examine_access(nodes) if context.settings.gravity.wants_access_times else [])


def examine_access(nodes: Iterable[NodeReport]) -> list[Finding]:
    """Where gravity goes by access times, reading an object must show in them."""
    return [
        Finding(
            f"access {report.node.node_id}",
            "warn",
            "it is mounted with noatime, so that its objects' access times stand still: what is read there looks cold",
            'mount it with relatime, or take [gravity] access from elsewhere ("fleet", an access log, a provider)',
        )
        for report in nodes
        if report.shows_access is False
    ]


def examine_nodes(nodes: Iterable[NodeReport]) -> list[Finding]:
    """Every node is there, is itself, and can be written to."""
    steps = {
        "unadopted": "run `rebalance nodes --adopt` if its URL is right",
        "missing": "mount it, or put its url in rebalance.toml right; a disk replaced on purpose: `rebalance nodes --adopt`",
        "not_writable": "give the workers' user write access to its root",
        "maintenance": "`rebalance activate` when the work is done",
    }
    found = []
    for report in nodes:
        verdict = _VERDICTS.get(report.status, "fail")
        detail = f"{report.status}: {report.detail}" if report.detail else report.status
        if report.status == "missing" and report.node.queues and report.from_here:
            verdict, hosts = "warn", ", ".join(queues_reaching(report.node))
            detail = f"not reached from this machine, as it should be where {hosts} is not served ({report.detail})"
        shown = f"{masked_url(report.node.url)}{_WAYS[report.direct]}" if verdict == "ok" else detail
        found.append(Finding(f"node {report.node.node_id}", verdict, shown, steps.get(report.status, "")))
    return found or [
        Finding("nodes", "fail", "none is configured", "add [[nodes]] to rebalance.toml: `rebalance init`")
    ]


def examine_catalogue(context: FleetContext) -> list[Finding]:
    """The host's catalogue, where it says where objects are, can be loaded and answers."""
    if context.catalogue is None:
        return []
    source = context.settings.catalogue
    try:
        context.catalogue.locate([])
        context.catalogue.flip([])
    except ConfigurationError as exc:
        return [
            Finding("catalogue", "fail", str(exc), "install the provider beside every worker, or put [fleet] right")
        ]
    except CatalogueUnreachable as exc:
        return [Finding("catalogue", "fail", str(exc), "bring it back; jobs that wait for it go on by themselves")]
    return [Finding("catalogue", "ok", f"{source} answers")]


def examine_trash(context: FleetContext) -> Finding:
    """Freed sources are purged when their grace is over; if not, the space they take does not come back."""
    keys, redis = context.keys, context.connection
    overdue = int(redis.client.zcount(keys.trash_due, "-inf", redis.now_ms() - OVERDUE_MS))
    waiting = sum(context.fleet.awaiting().values())
    told = f"{waiting} bytes wait to be purged"
    if overdue:
        detail = f"{told}; {overdue} records are over their grace by more than {OVERDUE_MS // 60_000} minutes"
        return Finding("trash", "warn", detail, "see that cleanup runs, that the nodes are there, and durability above")
    return Finding("trash", "ok", told)


def _ago(age: timedelta) -> str:
    whole = int(age.total_seconds())
    for unit, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if whole >= 2 * unit:
            return f"{whole // unit} {name} ago"
    return f"{whole} s ago"
