"""The tasks, thin: validate → call → return. Everything they decide is decided in Redis by what they call.

They are `shared_task`s whose delivery options are their own, so a stock Celery app can include this module. Arguments
are keyword JSON and untrusted (invariant 13): they carry ids, never URLs or credentials. Headers of the chord
(`migrate`, `monitor`) never raise: a `migrate` whose group is not ended returns without its chain, a `monitor` that came
too early drops itself with `Ignore`, and the sweep re-drives what stalls.
"""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from celery import shared_task
from celery.exceptions import Ignore
from celery.signals import worker_init, worker_shutting_down
from pydantic import Field, PositiveInt, ValidationError
from redis.exceptions import RedisError

from rebalance_tasks import beacon as _beacon  # noqa: F401  connected by importing it
from rebalance_tasks import signals
from rebalance_tasks.control import check as checks
from rebalance_tasks.control import cleanup as cleanups
from rebalance_tasks.control import lifecycle, notices
from rebalance_tasks.control import start as starts
from rebalance_tasks.control import sweep as sweeps
from rebalance_tasks.control.reach import adopt_here, far_queues, within_reach
from rebalance_tasks.control.relay import run_relay
from rebalance_tasks.control.surveying.parts import PlaceName
from rebalance_tasks.control.surveying.round import survey_nodes
from rebalance_tasks.core.errors import InvalidArgument, PermanentError, RebalanceError
from rebalance_tasks.core.models import ControlResult, Frozen, Identifier
from rebalance_tasks.core.routes import CONTROL_QUEUE, DATA_QUEUE
from rebalance_tasks.drivers.registry import import_ahead
from rebalance_tasks.messages import COUNTED
from rebalance_tasks.migration.shutdown import SHUTTING_DOWN
from rebalance_tasks.migration.slice import SliceOutcome
from rebalance_tasks.runtime import Runtime, runtime_for
from rebalance_tasks.task_line import LoggedTask
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Task

    from rebalance_tasks.store.moves import Ending

log = get_logger(__name__)


@worker_shutting_down.connect
def _hand_back(**_: object) -> None:
    """Slices in all processes of this worker look at this flag, which its main process raises: in a stock app too, so here."""
    SHUTTING_DOWN.set()


@worker_init.connect
def _import_ahead(sender: Any, **_: object) -> None:  # noqa: ANN401  the worker
    """What the fleet's nodes need is imported before the pool forks: once, and while no job waits for it."""
    with suppress(RebalanceError):  # the first task says what is wrong
        import_ahead(runtime_for(sender.app).settings.nodes)


#: Delivery, whatever the host app's defaults are: redelivered when a worker dies, never a stored result nobody reads.
DELIVERY: Final[dict[str, Any]] = {
    "bind": True,
    "base": LoggedTask,
    "acks_late": True,
    "reject_on_worker_lost": True,
    "ignore_result": True,
    "serializer": "json",
    "queue": CONTROL_QUEUE,
    "max_retries": 0,
}
#: Callers of control tasks want to know what came of them.
ANSWERED: Final[dict[str, Any]] = {**DELIVERY, "ignore_result": False}
#: A check surveys whole nodes; it ends before its lock (600 s) does.
CHECK_TIME_LIMIT_S: Final = 580
#: A group whose runner failed so often for reasons we did not foresee is given up, so that the job can end.
MAX_GROUP_ERRORS: Final = 5
#: Every sweep asks again, so a message that waited longer is one too many.
NOTIFY_EXPIRES_S: Final = 10


class FleetArguments(Frozen):
    """What every task takes."""

    fleet: Identifier | None = None


class CheckArguments(FleetArguments):
    """Arguments of check."""

    force: bool = False


class TokenArguments(FleetArguments):
    """Arguments of conclude."""

    token: PositiveInt


class SurveyArguments(TokenArguments):
    """Arguments of survey."""

    node_ids: tuple[PlaceName, ...]


class StartArguments(FleetArguments):
    """Arguments of start."""

    plan_id: Identifier
    job_id: Identifier | None = None


class JobArguments(FleetArguments):
    """Arguments of pause, resume, cancel and finalize."""

    job_id: Identifier


class GroupArguments(JobArguments):
    """Arguments of migrate and monitor."""

    group_id: Identifier


class MigrateArguments(GroupArguments):
    """Arguments of migrate; ``extra`` marks one more slice of a busy pair."""

    extra: bool = False


class ChoreArguments(FleetArguments):
    """Arguments of sweep and cleanup; ``queue``: only what takes reaching the nodes of that queue."""

    queue: str | None = Field(default=None, max_length=200)


A = TypeVar("A", bound=FleetArguments)


class UnexpectedError(PermanentError):
    """A runner failed in a way nobody foresaw; the log has its trace."""

    cause = "unexpected_error"


@shared_task(name="rebalance.check", time_limit=CHECK_TIME_LIMIT_S, **ANSWERED)
def check(self: Task[Any, Any], *, force: bool = False, fleet: str | None = None) -> dict[str, Any]:
    """Check the fleet and plan; return {verdict, reason, plan_id}."""
    arguments = _validated(CheckArguments, force=force, fleet=fleet)
    context = _runtime(self, arguments).context
    result = checks.run_check(context, force=arguments.force, by=_by(self), by_tasks=True)
    return result.model_dump(mode="json")


@shared_task(name="rebalance.survey", time_limit=CHECK_TIME_LIMIT_S, **{**DELIVERY, "queue": "rebalance.data"})
def survey(self: Task[Any, Any], *, token: int, node_ids: list[str], fleet: str | None = None) -> dict[str, Any]:
    """Look at some nodes for the check that holds this token; return {nodes}: how many were handed in."""
    arguments = _validated(SurveyArguments, token=token, node_ids=node_ids, fleet=fleet)
    return {"nodes": survey_nodes(_runtime(self, arguments).context, arguments.token, arguments.node_ids)}


@shared_task(name="rebalance.conclude", time_limit=CHECK_TIME_LIMIT_S, **DELIVERY)
def conclude(self: Task[Any, Any], *, token: int, fleet: str | None = None) -> dict[str, Any]:
    """Go on with the check whose nodes are all in; the last survey and the sweep lead here, any number of times."""
    arguments = _validated(TokenArguments, token=token, fleet=fleet)
    result = checks.conclude_check(_runtime(self, arguments).context, arguments.token)
    return {} if result is None else result.model_dump(mode="json")


@shared_task(name="rebalance.start", **ANSWERED)
def start(self: Task[Any, Any], *, plan_id: str, job_id: str | None = None, fleet: str | None = None) -> dict[str, Any]:
    """Start a plan; return {job_id, status, reason}. The same job_id twice is one job."""
    arguments = _validated(StartArguments, plan_id=plan_id, job_id=job_id, fleet=fleet)

    def verb() -> ControlResult:
        context = _runtime(self, arguments).context
        job = starts.start_job(context, arguments.plan_id, job_id=arguments.job_id, requested_by=_by(self))
        return ControlResult(job_id=job.job_id, status=job.status)

    return _answer(arguments.job_id or f"rebal-{arguments.plan_id}", verb)


@shared_task(name="rebalance.pause", **ANSWERED)
def pause(self: Task[Any, Any], *, job_id: str, fleet: str | None = None) -> dict[str, Any]:
    """Pause a job; return {job_id, status, reason}."""
    arguments = _validated(JobArguments, job_id=job_id, fleet=fleet)
    return _answer(
        arguments.job_id,
        lambda: lifecycle.pause(_runtime(self, arguments).context, arguments.job_id, by=_by(self)),
    )


@shared_task(name="rebalance.resume", **ANSWERED)
def resume(self: Task[Any, Any], *, job_id: str, fleet: str | None = None) -> dict[str, Any]:
    """Resume a job; return {job_id, status, reason}."""
    arguments = _validated(JobArguments, job_id=job_id, fleet=fleet)
    return _answer(
        arguments.job_id,
        lambda: lifecycle.resume(_runtime(self, arguments).context, arguments.job_id, by=_by(self)),
    )


@shared_task(name="rebalance.cancel", **ANSWERED)
def cancel(self: Task[Any, Any], *, job_id: str, fleet: str | None = None) -> dict[str, Any]:
    """Cancel a job; return {job_id, status, reason}."""
    arguments = _validated(JobArguments, job_id=job_id, fleet=fleet)
    return _answer(
        arguments.job_id,
        lambda: lifecycle.cancel(_runtime(self, arguments).context, arguments.job_id, requested_by=_by(self)),
    )


@shared_task(name="rebalance.migrate", **{**DELIVERY, "queue": DATA_QUEUE})
def migrate(self: Task[Any, Any], **given: Any) -> dict[str, Any]:  # noqa: ANN401  validated below: a header never raises
    """Carry a group's moves on for one slice (job_id, group_id); to the monitor it goes only when the group is terminal."""
    try:
        arguments = _validated(MigrateArguments, **given)
        runtime = _runtime(self, arguments)
        queue = _queue(self, runtime)
        outcome = run_relay(
            runtime.context,
            arguments.job_id,
            arguments.group_id,
            queue=queue,
            run_slice=partial(_run_slice, runtime, queue),
            extra=arguments.extra,
        )
    except Exception:
        log.exception("migrate.failed")
        outcome = SliceOutcome.DROPPED
    if outcome is not SliceOutcome.TERMINAL:
        self.request.chain = None
    return {"group_id": given.get("group_id"), "outcome": outcome}


@shared_task(name="rebalance.monitor", **DELIVERY)
def monitor(self: Task[Any, Any], **given: Any) -> dict[str, Any]:  # noqa: ANN401  validated below: a header never raises
    """Count a terminal group (job_id, group_id), give its permit back, let the next group go; unless whoever ended it has done so."""
    try:
        arguments = _validated(GroupArguments, **given)
        finished = bool(self.request.get(COUNTED)) or lifecycle.finish_group(
            _runtime(self, arguments).context, arguments.job_id, arguments.group_id
        )
    except Exception:
        log.exception("monitor.failed")
        finished = False
    if not finished:
        raise Ignore
    return {"group_id": given.get("group_id")}


@shared_task(name="rebalance.finalize", **DELIVERY)
def finalize(self: Task[Any, Any], *, job_id: str, fleet: str | None = None) -> dict[str, Any]:
    """Close a job whose moves are all counted; callback, errback and sweep all lead here, any number of times."""
    arguments = _validated(JobArguments, job_id=job_id, fleet=fleet)
    return {"outcome": lifecycle.finalize(_runtime(self, arguments).context, arguments.job_id)}


@shared_task(name="rebalance.sweep", **DELIVERY)
def sweep(self: Task[Any, Any], *, queue: str | None = None, fleet: str | None = None) -> dict[str, Any]:
    """Re-drive what stalls, and have told what happened; with ``queue`` only look whether its nodes are back."""
    arguments = _validated(ChoreArguments, queue=queue, fleet=fleet)
    context = _runtime(self, arguments).context
    if arguments.queue is not None:
        return asdict(sweeps.look_at_nodes(context, within_reach(context, arguments.queue)))
    report = sweeps.run_sweep(context)
    if notices.behind(context):
        # A task of its own: a receiver that hangs must not keep the sweep.
        to = context.settings.broker_queues.named(CONTROL_QUEUE)
        notify.apply_async(kwargs={"fleet": context.settings.fleet}, queue=to, expires=NOTIFY_EXPIRES_S)
    return asdict(report)


@shared_task(name="rebalance.notify", **DELIVERY)
def notify(self: Task[Any, Any], *, fleet: str | None = None) -> dict[str, Any]:
    """Tell signals and webhooks what happened since they were told last."""
    context = _runtime(self, _validated(FleetArguments, fleet=fleet)).context
    return asdict(notices.deliver(context, signal=signals.send))


@shared_task(name="rebalance.cleanup", **DELIVERY)
def cleanup(self: Task[Any, Any], *, queue: str | None = None, fleet: str | None = None) -> dict[str, Any]:
    """Purge what is over its grace, forget old forwardings, remove orphans: here, or with ``queue`` on the nodes of its hosts."""
    arguments = _validated(ChoreArguments, queue=queue, fleet=fleet)
    context = _runtime(self, arguments).context
    if arguments.queue is None:
        for far in far_queues(context):
            context.messenger.publish_chore("cleanup", far)
    return asdict(cleanups.run_cleanup(context, only=within_reach(context, arguments.queue)))


def _validated(model: type[A], **values: object) -> A:
    try:
        return model.model_validate(values)
    except ValidationError as exc:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}={e['input']!r}: {e['msg']}" for e in exc.errors())
        raise InvalidArgument(problems) from exc


def _runtime(task: Task[Any, Any], arguments: FleetArguments) -> Runtime:
    return runtime_for(task.app, arguments.fleet)


def _by(task: Task[Any, Any]) -> str:
    """Who asked, for the history: the message, since a broker does not know its sender."""
    return f"task:{task.request.id}"


def _answer(job_id: str, verb: Callable[[], ControlResult]) -> dict[str, Any]:
    """Answer what the verb did, or why it could not, as plain JSON."""
    try:
        result = verb()
    except RebalanceError as exc:
        result = ControlResult(job_id=job_id, status=None, reason=f"{exc.cause}: {exc}")
    return result.model_dump(mode="json")


def _queue(task: Task[Any, Any], runtime: Runtime) -> str:
    """The fleet's queue that a task's message came from, and which this worker therefore serves."""
    came_over = str(task.request.delivery_info.get("routing_key", ""))
    return next(iter(runtime.settings.broker_queues.own([came_over])), "")


def _run_slice(runtime: Runtime, queue: str, job_id: str, group_id: str, extra: bool, ending: Ending) -> SliceOutcome:  # noqa: FBT001  as the relay calls it
    adopt_here(runtime.context, job_id, group_id, queue=queue, driver=runtime.drivers_of(queue))
    work = runtime.slice(job_id, group_id, owner=uuid.uuid4().hex, queue=queue, extra=extra, ending=ending)
    try:
        return work.run()
    except (RedisError, OSError):
        raise
    except Exception as exc:
        if runtime.context.jobs.note_error(job_id, group_id) < MAX_GROUP_ERRORS:
            raise
        log.exception("migrate.given_up")
        return work.give_up(UnexpectedError(f"{type(exc).__name__}: {exc}"))
