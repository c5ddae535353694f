"""The processes of the demo, and the client that talks to them: started in order, ended in order, whatever happens."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.errors import ServerUnavailable
from rebalance_tasks.demo.processes import CeleryBeat, CeleryWorker, ManagedProcess, child_environment
from rebalance_tasks.embedded import EmbeddedServer, start_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rebalance_tasks.client import Rebalancer
    from rebalance_tasks.demo.signals import Signals

#: A cancelled job ends when its last batch is undone or finished; a moment at most.
CANCEL_PATIENCE_S: Final = 4.0
#: A worker asked to end finishes the batch in hand.
STOP_PATIENCE_S: Final = 10.0
POLL_INTERVAL_S: Final = 0.05
WORKER_CONCURRENCY: Final = 2


class Crew:
    """Server, worker, beat and client.

    Attributes:
        client: of the demo's fleet; there once the workers are started.
    """

    client: Rebalancer

    def __init__(self, directory: Path, signals: Signals) -> None:
        """Start nothing yet."""
        self._directory = directory
        self._signals = signals
        self._server: EmbeddedServer | None = None
        self._worker: CeleryWorker | None = None
        self._beat: CeleryBeat | None = None
        self._env: dict[str, str] = {}
        self._environment = contextlib.ExitStack()

    def start_server(self) -> str:
        """Start the server and return its URL."""
        self._server = start_server(self._directory / "redis")
        return self._server.url

    def start_worker(self, config: Path) -> None:
        """Start the worker, and do not wait for it: it comes up while the files are copied."""
        self._env = child_environment(config)
        self._worker = CeleryWorker(
            broker_url=self._url,
            log_path=self._directory / "worker.log",
            env=self._env,
            concurrency=WORKER_CONCURRENCY,
        )
        self._environment.enter_context(own_environment(config))

    def start_beat(self) -> None:
        """Adopt the nodes, wait until the worker takes tasks, and start beat."""
        from rebalance_tasks.client import Rebalancer  # noqa: PLC0415  loads celery

        self.client = Rebalancer()
        # Before beat's first check: a fleet whose nodes nobody has adopted is left alone.
        self.client.adopt()
        if self._worker is not None:
            self._worker.wait_ready()
        self._beat = CeleryBeat(state_dir=self._directory, log_path=self._directory / "beat.log", env=self._env)

    def request_cleanup(self) -> None:
        """Ask for the cleanup now, by its name, as any service may; beat would ask within a minute."""
        import celery  # noqa: PLC0415

        with celery.Celery(broker=self._url, set_as_current=False) as app:
            app.send_task("rebalance.cleanup", queue="rebalance.control", ignore_result=True)

    def require_alive(self) -> None:
        """Raise with the log's tail if a process has ended by itself."""
        for process in self._processes():
            process.require_alive()
        if self._server is not None and self._server.process.poll() is not None:
            msg = f"the server has ended; its log ends with:\n{self._server.log_tail()}"
            raise ServerUnavailable(msg)

    def log_tails(self) -> str:
        """Return the ends of the logs of worker and beat."""
        return "\n".join(f"the {process.name}'s log ends with:\n{process.log_tail()}" for process in self._processes())

    def close(self, *, cancel: bool) -> None:
        """End everything; a second Ctrl-C turns asking into killing. Idempotent.

        Args:
            cancel: end an active job first, as an operator would, so that what is being copied is undone.
        """
        _end(self._beat, 0.0, self._signals)
        if cancel and not self._signals.hurry.is_set():
            # The server may be what died, or may never have come up: then there is nothing to cancel.
            with contextlib.suppress(Exception):
                self._cancel_active()
        _end(self._worker, STOP_PATIENCE_S, self._signals)
        if self._server is not None:
            if self._signals.hurry.is_set():
                self._server.kill()
            else:
                self._server.stop()
        self._environment.close()

    @property
    def _url(self) -> str:
        if self._server is None:
            msg = "the server is not started yet"
            raise ServerUnavailable(msg)
        return self._server.url

    def _cancel_active(self) -> None:
        active = [job.job_id for job in self.client.jobs() if not job.status.terminal]
        for job_id in active:
            self.client.cancel(job_id)
        deadline = time.monotonic() + CANCEL_PATIENCE_S
        while time.monotonic() < deadline and not self._signals.hurry.is_set():
            if all(self.client.status(job_id).status.terminal for job_id in active):
                return
            time.sleep(POLL_INTERVAL_S)

    def _processes(self) -> list[ManagedProcess]:
        return [process for process in (self._worker, self._beat) if process is not None]


def _end(process: ManagedProcess | None, patience_s: float, signals: Signals) -> None:
    """Ask a process to end, wait as long as patience and hurry allow, and kill what is left of its group."""
    if process is None:
        return
    process.terminate()
    deadline = time.monotonic() + patience_s
    while process.alive and time.monotonic() < deadline and not signals.hurry.is_set():
        time.sleep(POLL_INTERVAL_S)
    process.kill()


@contextlib.contextmanager
def own_environment(config: Path) -> Iterator[None]:
    """Point this process at a configuration, other ``REBALANCE_*`` variables aside, until the context ends."""
    before = {name: value for name, value in os.environ.items() if name.startswith("REBALANCE_")}
    for name in before:
        del os.environ[name]
    os.environ["REBALANCE_CONFIG"] = str(config)
    try:
        yield
    finally:
        del os.environ["REBALANCE_CONFIG"]
        os.environ.update(before)
