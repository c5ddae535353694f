"""Following the fleet at work: waiting for beat's check, a job's progress, the pause in the middle, and the bars meanwhile."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rebalance_tasks.cli.tables import percent
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.demo import inspect
from rebalance_tasks.demo.display import Frame
from rebalance_tasks.demo.inspect import DemoFailed

if TYPE_CHECKING:
    from rebalance_tasks.core.models import RebalanceJob
    from rebalance_tasks.demo.corpus import Corpus
    from rebalance_tasks.demo.crew import Crew
    from rebalance_tasks.demo.display import Display
    from rebalance_tasks.demo.inspect import NodeUsage
    from rebalance_tasks.demo.signals import Signals

#: First check (beat waits one interval), survey and plan, on a busy machine.
START_PATIENCE_S: Final = 60.0
#: Without progress for this long something is broken.
STALL_S: Final = 60.0
#: Waiting for the originals to be purged; what is still in its grace then is only mentioned.
PURGE_PATIENCE_S: Final = 10.0
ASK_EVERY_S: Final = 2.0
PAUSE_AT: Final = 0.35
#: "Paused" is promised to mean "no byte moves" within this time.
PAUSE_PROMISE_S: Final = 0.25
#: How long nothing may move, sampled all the while.
PAUSE_HELD_S: Final = 1.5
TICK_S: Final = 0.1
#: Reading the sizes of ten thousand files takes 50 ms; twice a second leaves the worker its share of the machine.
SURVEY_EVERY_S: Final = 0.5
#: Over this time the shown rate is averaged.
RATE_WINDOW_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Standing:
    """What must not change while a job is paused: its count of bytes, and every node on disk."""

    bytes_moved: int
    usage: dict[str, NodeUsage]


class Watcher:
    """Looks at disks and jobs, and shows what it sees.

    Attributes:
        start: utilisation by node before anything moved.
        pause_note: what was seen while the job was paused.
        frames: what was shown while jobs ran (for the picture).
    """

    def __init__(self, corpus: Corpus, crew: Crew, display: Display, signals: Signals) -> None:
        """Look at the disks for the first time."""
        self._corpus = corpus
        self._crew = crew
        self._display = display
        self._signals = signals
        self._usage = inspect.survey(corpus.nodes)
        self._surveyed = time.monotonic()
        self._rates: list[tuple[float, int]] = []
        self.start = inspect.utilisations(corpus.nodes, self._usage)
        self.pause_note = "not shown: no job moved anything"
        self.frames: list[Frame] = []

    # -- waiting for jobs ------------------------------------------------------------------------------------------

    def await_job(self, known: set[str]) -> str:
        """Return the first job that is not known. Raises: DemoFailed when no check starts one."""
        deadline = time.monotonic() + START_PATIENCE_S
        while time.monotonic() < deadline:
            self.tick()
            found = self._new_job(known)
            if found is not None:
                self._display.event(f"the check found the fleet unbalanced, planned, and started job {found}")
                return found
            self.show("waiting for beat's check")
        checks = "; ".join(
            f"{check.get('verdict')}: {check.get('reason')}" for check in self._crew.client.checks(limit=3)
        )
        msg = f"beat's check started no job within {START_PATIENCE_S:.0f} s; last checks: {checks or 'none'}\n{self._crew.log_tails()}"
        raise DemoFailed(msg)

    def await_next_job(self, known: set[str], *, patience_s: float) -> str | None:
        """Return the next round's job, or None once a check has found nothing more to do."""
        seen = {str(check.get("at")) for check in self._crew.client.checks()}
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            self.tick()
            found = self._new_job(known)
            if found is not None:
                self._display.event(f"another check, another round: job {found}")
                return found
            for check in self._crew.client.checks(limit=5):
                if str(check.get("at")) not in seen and check.get("verdict") == "skipped":
                    self._display.event(f"the next check found nothing to do ({check.get('reason')})")
                    return None
            self.show("waiting for the next check")
        return None

    def await_purge(self) -> None:
        """Wait until the freed originals are purged, but not for ever."""
        deadline, asked = time.monotonic() + PURGE_PATIENCE_S, float("-inf")
        while time.monotonic() < deadline and any(inspect.trash_files(node) for node in self._corpus.nodes):
            if time.monotonic() - asked > ASK_EVERY_S:
                self._crew.request_cleanup()
                asked = time.monotonic()
            self.tick()
            self.show("freed originals are purged when their grace is over")

    def _new_job(self, known: set[str]) -> str | None:
        return next((job.job_id for job in self._crew.client.jobs() if job.job_id not in known), None)

    # -- one job ---------------------------------------------------------------------------------------------------

    def follow(self, job_id: str, *, with_pause: bool) -> RebalanceJob:
        """Watch a job to its end, holding it once on the way.

        Raises:
            DemoFailed: it stalled, did not complete, lost count of a move, or moved something while paused.
        """
        self._rates.clear()
        progress, progressed = (-1, -1), time.monotonic()
        while True:
            self.tick()
            job = self._crew.client.status(job_id)
            self.show("moving", job)
            if job.status.terminal:
                break
            now = (job.bytes_moved, job.completed_moves + job.failed_moves + job.skipped_moves)
            if now != progress:
                progress, progressed = now, time.monotonic()
            elif time.monotonic() - progressed > STALL_S:
                msg = f"job {job_id} made no progress for {STALL_S:.0f} s\n{self._crew.log_tails()}"
                raise DemoFailed(msg)
            if with_pause and job.total_bytes and job.bytes_moved >= PAUSE_AT * job.total_bytes:
                with_pause = False
                self._pause_and_resume(job)
                progressed = time.monotonic()
        self._judge(job)
        self._display.event(f"job {job.job_id}: {job.completed_moves} of {job.total_moves} moves completed")
        return job

    def _judge(self, job: RebalanceJob) -> None:
        counted = job.completed_moves + job.failed_moves + job.skipped_moves
        if job.status is not RebalanceStatus.COMPLETED or job.failed_moves or counted != job.total_moves:
            msg = (
                f"job {job.job_id} ended {job.status.value}: {job.completed_moves} completed, {job.failed_moves} failed, "
                f"{job.skipped_moves} skipped of {job.total_moves} moves {dict(job.failures)} {job.error or ''}\n{self._crew.log_tails()}"
            )
            raise DemoFailed(msg)

    def _pause_and_resume(self, job: RebalanceJob) -> None:
        client = self._crew.client
        client.pause(job.job_id)
        time.sleep(PAUSE_PROMISE_S)
        job = client.status(job.job_id)
        if job.status.terminal:
            self.pause_note = "not shown: the job was over before it could be paused (too little to move)"
            self._display.event(self.pause_note)
            return
        share = percent(job.bytes_moved / job.total_bytes)
        self._display.event(f"paused at {share}; watching the disks for {PAUSE_HELD_S} s")
        still, looks, until = self._standing(job), 0, time.monotonic() + PAUSE_HELD_S
        while time.monotonic() < until:
            self.tick()
            job = client.status(job.job_id)
            now = self._standing(job)
            self.show("paused: nothing moves", job)
            looks += 1
            if now != still:
                msg = f"bytes moved while the job was paused: {still} became {now}"
                raise DemoFailed(msg)
        client.resume(job.job_id)
        self.pause_note = (
            f"at {share} for {PAUSE_HELD_S} s: no byte moved (seen in {looks} looks at all disks), then resumed"
        )
        self._display.event("resumed; nothing had moved while it was paused")

    def _standing(self, job: RebalanceJob) -> Standing:
        self._usage, self._surveyed = inspect.survey(self._corpus.nodes), time.monotonic()
        return Standing(job.bytes_moved, self._usage)

    # -- showing ---------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Let a moment pass; raise if a process died or somebody wants the demo to end."""
        self._signals.check()
        self._crew.require_alive()
        time.sleep(TICK_S)

    def show(self, phase: str, job: RebalanceJob | None = None) -> None:
        """Show the present, with the disks as they were at most half a second ago."""
        if time.monotonic() - self._surveyed >= SURVEY_EVERY_S:
            self._usage, self._surveyed = inspect.survey(self._corpus.nodes), time.monotonic()
        rate = (
            0.0
            if job is None or job.status is not RebalanceStatus.RUNNING
            else self._rate(job.bytes_moved + self._staged())
        )
        frame = Frame(self._corpus.nodes, self.start, self._usage, phase, job, rate)
        self._display.frame(frame)
        if job is not None and not job.status.terminal:
            self.frames.append(frame)

    def _staged(self) -> int:
        return sum(usage.staged_bytes for usage in self._usage.values())

    def _rate(self, bytes_moved: int) -> float:
        now = time.monotonic()
        self._rates = [(at, count) for at, count in self._rates if now - at <= RATE_WINDOW_S]
        self._rates.append((now, bytes_moved))
        (first, before), (last, after) = self._rates[0], self._rates[-1]
        return max(0.0, (after - before) / (last - first)) if last > first else 0.0
