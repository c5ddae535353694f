"""What every task leaves behind: one canonical log line at its end, and its count and duration in the fleet's counters.

The line carries the task's name, its ids, how it ended, how long it took and what it answered. The counters lie in Redis, so
that they add up over prefork's processes; a process adds its own at most once a second, since for a job of small groups a trip
to Redis for each message would be felt.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from celery import Task
from celery.exceptions import Ignore
from celery.signals import worker_process_shutdown, worker_shutdown
from redis.exceptions import RedisError

from rebalance_tasks.core.errors import RebalanceError
from rebalance_tasks.runtime import runtime_for, runtimes_for
from rebalance_tasks.store.counters import TASK_BOUNDS_S, bucket
from rebalance_tasks.telemetry import bound_ids, get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery import Celery

log = get_logger(__name__)

#: Added to the counters at most so often by one process.
ADD_EVERY_S: Final = 1.0
#: Arguments that are ids; whatever else a message holds is not repeated.
_IDS: Final = ("job_id", "group_id")
_LONGEST_ID: Final = 128


class LoggedTask(Task):
    """Base of our tasks."""

    abstract = True
    #: imported by workers alone
    Request = "rebalance_tasks.worker:TimedRequest"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  Celery's signature
        """Run the task, and say at its end what came of it."""
        begun = time.monotonic()
        outcome, told = "failed", {}
        with bound_ids(task_id=self.request.id, **_ids(kwargs)):
            try:
                answer = self.run(*args, **kwargs)
                outcome, told = "done", _told(answer)
            except Ignore:
                outcome = "ignored"
                raise
            except Exception as exc:
                told = {"error": getattr(exc, "cause", type(exc).__name__)}
                raise
            else:
                return answer
            finally:
                seconds = time.monotonic() - begun
                log.info("task.done", task=self.name, ended=outcome, seconds=round(seconds, 4), **told)
                METER.note(self.app, kwargs.get("fleet"), self.name.removeprefix("rebalance."), outcome, seconds)


class Meter:
    """Collects what this process' tasks count until it is time to add it."""

    def __init__(self) -> None:
        """Begin with nothing."""
        #: fleet that the message named → what is to be added there
        self._counts: dict[str | None, Counter[str]] = {}
        self._lock = threading.Lock()
        self._due = 0.0
        self._app: Celery | None = None
        self._timer: threading.Timer | None = None

    def note(self, app: Celery, fleet: object, task: str, outcome: str, seconds: float) -> None:
        """Count the end of a task of a fleet; of the default one where its message named none, or none of this process."""
        with self._lock:
            self._app = app
            counts = self._counts.setdefault(_served(app, fleet), Counter())
            counts.update({f"tasks:{task}:{outcome}": 1, **bucket(f"task:{task}", seconds, TASK_BOUNDS_S)})
            wait_s = self._due - time.monotonic()
            if wait_s > 0:
                self._add_after(wait_s)
                return
        self.add()

    def _add_after(self, wait_s: float) -> None:
        """See to it that what an idle process holds is added too."""
        if self._timer is None:
            self._timer = threading.Timer(wait_s, self.add)
            self._timer.daemon = True
            self._timer.start()

    def add(self, **_: object) -> None:
        """Add what was collected to the fleets' counters; without Redis it is kept for the next time."""
        with self._lock:
            collected, self._counts = self._counts, {}
            self._timer = None
            self._due = time.monotonic() + ADD_EVERY_S
        if self._app is None:
            return
        for fleet, counts in collected.items():
            try:
                runtime_for(self._app, fleet).context.counters.add(counts)
            except (RedisError, RebalanceError, OSError) as exc:
                log.debug("counters.kept", error=str(exc))
                with self._lock:
                    self._counts.setdefault(fleet, Counter()).update(counts)


#: This process' meter.
METER: Final = Meter()
worker_process_shutdown.connect(METER.add)
worker_shutdown.connect(METER.add)


def _served(app: Celery, fleet: object) -> str | None:
    """The fleet that a message names, if this process serves it; ``None`` is the default one."""
    try:
        return fleet if isinstance(fleet, str) and fleet in runtimes_for(app) else None
    except RebalanceError:
        return None


def _ids(arguments: Mapping[str, object]) -> dict[str, str]:
    """The ids among a message's arguments, which are not validated yet."""
    return {name: value[:_LONGEST_ID] for name in _IDS if isinstance(value := arguments.get(name), str)}


def _told(answer: object) -> dict[str, Any]:
    """What a task answered, without the ids that the line bears anyway and without zeros."""
    if not isinstance(answer, dict):
        return {}
    return {name: value for name, value in answer.items() if name not in _IDS and value not in (0, None, "")}
