"""Real workers and beats for tests; what they print ends up in the test's report when it fails."""

from __future__ import annotations

import itertools
import os
import sys
from typing import TYPE_CHECKING, Any

from rebalance_tasks.demo.processes import SOURCE_ROOT, CeleryBeat, CeleryWorker, ManagedProcess

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class Worker(CeleryWorker):
    """A real ``celery -A rebalance_tasks worker`` of the test's own."""

    def kill9(self) -> None:
        """``kill -9`` of the whole process group: parent and pool children at once."""
        self.kill()


class ProcessFactory:
    """Starts workers and beats in the environment of the test and ends them all with it."""

    def __init__(self, log_dir: Path, broker_url: str) -> None:
        self.log_dir = log_dir
        self.broker_url = broker_url
        self.started: list[ManagedProcess] = []
        self._numbers = itertools.count(1)

    def worker(self, *, wait: bool = True, env: Mapping[str, str] | None = None, **options: Any) -> Worker:
        """Start a worker; ``options`` are those of `CeleryWorker` (concurrency, log_level, app, extra)."""
        worker = Worker(
            broker_url=options.pop("broker_url", self.broker_url),
            log_path=self.log_dir / f"worker-{next(self._numbers)}.log",
            env={**os.environ, **(env or {})},
            **options,
        )
        self.started.append(worker)
        return worker.wait_ready() if wait else worker

    def beat(self, *, env: Mapping[str, str] | None = None, **options: Any) -> CeleryBeat:
        """Start a beat; each has a schedule file of its own, as beats on several hosts would."""
        state_dir = self.log_dir / f"beat-{next(self._numbers)}"
        state_dir.mkdir()
        beat = CeleryBeat(
            state_dir=state_dir,
            log_path=state_dir.with_suffix(".log"),
            env={**os.environ, **(env or {})},
            **options,
        )
        self.started.append(beat)
        return beat

    def redbeat(self, *, app: str, env: Mapping[str, str] | None = None, log_level: str = "INFO") -> ManagedProcess:
        """Start a redbeat (``celery -A APP beat -S redbeat.RedBeatScheduler``)."""
        python_path = os.pathsep.join(filter(None, [str(SOURCE_ROOT), os.environ.get("PYTHONPATH", "")]))
        beat = ManagedProcess(
            "redbeat",
            [
                *(sys.executable, "-m", "celery", "-A", app, "beat", "-S", "redbeat.RedBeatScheduler"),
                *("--pidfile", "", "-l", log_level),
            ],
            log_path=self.log_dir / f"redbeat-{next(self._numbers)}.log",
            env={**os.environ, "PYTHONPATH": python_path, **(env or {})},
        )
        self.started.append(beat)
        return beat

    def stop_all(self) -> None:
        """End everything that was started; at once, since whatever a test wanted to see of an orderly end it has seen."""
        for process in self.started:
            process.kill()

    def logs(self) -> str:
        """Return the ends of all logs, for a failing test's report."""
        return "\n".join(f"--- {process.log_path.name}\n{process.log_tail(60)}" for process in self.started)
