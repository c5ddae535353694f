"""Workers and beat as real processes that log to a file, are ended as a group, and never outlive their parent.

Used by the demo and by the tests' workers. Each process leads a session of its own: a Ctrl-C in the terminal reaches
only the parent, which ends its children in its own order, and `ManagedProcess.kill` takes the pool's children along.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from rebalance_tasks.core.errors import RetryableError
from rebalance_tasks.embedded import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

#: Celery with this package takes about one second; a busy two-core machine ten times that.
READY_TIMEOUT_S: Final = 60.0
#: A worker finishes the batch in hand; what takes longer is journalled and may be killed.
STOP_TIMEOUT_S: Final = 15.0
#: How long one question "are you there?" waits for its answer.
PING_TIMEOUT_S: Final = 0.3
POLL_INTERVAL_S: Final = 0.05
#: Where `beat_schedule.py` lies in a source tree.
SOURCE_ROOT: Final = Path(__file__).resolve().parents[2]


class ProcessFailed(RetryableError):
    """A child process ended by itself or did not become ready; the message carries the end of its log."""

    cause = "process_failed"


class ManagedProcess:
    """A child process with a log file, in a session (and process group) of its own.

    Attributes:
        name: what messages call it.
        log_path: where its output goes (appended).
        process: the child; its id is also the id of its group.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, log_path: Path, env: Mapping[str, str], cwd: Path | None = None
    ) -> None:
        """Start it."""
        self.name = name
        self.log_path = log_path
        self._was_reaped = False
        with log_path.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603  the command is ours, no shell
                # A quiet death of the parent must not leave a worker that moves files.
                die_with_parent(command, sig=signal.SIGKILL),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=cwd or log_path.parent,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether it is still running."""
        return self.process.poll() is None

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of its log."""
        try:
            text = self.log_path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def require_alive(self) -> None:
        """Raise `ProcessFailed` with the log's tail if it has ended."""
        if not self.alive:
            msg = f"the {self.name} process ended with code {self.process.returncode}; its log ({self.log_path}) ends with:\n{self.log_tail()}"
            raise ProcessFailed(msg)

    def terminate(self) -> None:
        """Ask it to end, and do not wait."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Ask it to end, wait, and kill what is left of its group. Idempotent."""
        self.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout_s)
        self.kill()

    def kill(self) -> None:
        """``kill -9`` the whole group, pool children included. Idempotent."""
        if self._was_reaped:
            # The group's id may belong to somebody else by now.
            return
        # The group outlives its leader as long as a member is left; until the leader is reaped its id stays ours.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._was_reaped = True

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; at once when leaving by an exception."""
        self.stop(STOP_TIMEOUT_S if error is None else 0.0)


class CeleryWorker(ManagedProcess):
    """``celery -A rebalance_tasks worker`` as an operator would start it.

    Attributes:
        node_name: its name on the broker (``demo-1234@localhost``), unique so that only it answers a ping.
    """

    def __init__(
        self,
        *,
        broker_url: str,
        log_path: Path,
        env: Mapping[str, str],
        app: str = "rebalance_tasks",
        concurrency: int = 2,
        log_level: str = "WARNING",
        extra: Sequence[str] = (),
    ) -> None:
        """Start it; `wait_ready` tells when it takes tasks."""
        self.broker_url = broker_url
        self.node_name = f"w{os.getpid()}-{time.monotonic_ns()}@localhost"
        command = [
            *(sys.executable, "-m", "celery", "-A", app, "worker"),
            *("--pool", "prefork", "--concurrency", str(concurrency)),
            *("-l", log_level, "-n", self.node_name),
            *extra,
        ]
        super().__init__("worker", command, log_path=log_path, env=env)

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> Self:
        """Wait until it answers on the broker, which it does once it consumes its queues.

        Raises:
            ProcessFailed: it ended, or did not answer in time.
        """
        import celery  # noqa: PLC0415  half a second that `rebalance --help` must not pay

        deadline = time.monotonic() + timeout_s
        with celery.Celery(broker=self.broker_url, set_as_current=False) as app:
            while time.monotonic() < deadline:
                self.require_alive()
                if app.control.ping(destination=[self.node_name], timeout=PING_TIMEOUT_S, limit=1):
                    return self
        msg = f"the worker did not answer within {timeout_s:.0f} s; its log ({self.log_path}) ends with:\n{self.log_tail()}"
        raise ProcessFailed(msg)


class CeleryBeat(ManagedProcess):
    """``celery -A beat_schedule beat`` (``-A rebalance_tasks`` where the package is installed without its source tree)."""

    def __init__(self, *, state_dir: Path, log_path: Path, env: Mapping[str, str], log_level: str = "WARNING") -> None:
        """Start it; its schedule file lies in ``state_dir``."""
        env = dict(env)
        app = "rebalance_tasks"
        if (SOURCE_ROOT / "beat_schedule.py").is_file():
            app = "beat_schedule"
            env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SOURCE_ROOT), env.get("PYTHONPATH", "")]))
        command = [
            *(sys.executable, "-m", "celery", "-A", app, "beat"),
            *("-s", str(state_dir / "beat-schedule"), "--pidfile", "", "-l", log_level),
        ]
        super().__init__("beat", command, log_path=log_path, env=env)


def child_environment(config: Path) -> dict[str, str]:
    """Return this process's environment for a child that serves ``config``.

    Settings of another fleet that happen to be set in the shell must not leak into it.
    """
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("REBALANCE_", "CELERY_", "FORKED_BY_"))
    }
    env["REBALANCE_CONFIG"] = str(config)
    env["PYTHONUNBUFFERED"] = "1"
    return env
