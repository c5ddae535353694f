"""A console as a real process over a fleet with a real worker, for tests that look at it from outside."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx2

from rebalance_tasks.demo.processes import SOURCE_ROOT, ManagedProcess
from rebalance_tasks.embedded import free_port, start_server
from tests.support.arena import context_of, rebalancer_of, wait_for
from tests.support.fleets import Fleet, NodeSpec, write_fleet
from tests.support.wait import wait_until
from tests.support.workers import ProcessFactory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from rebalance_tasks import Rebalancer

VIEWER = "viewer-token-of-the-tests"
OPERATOR = "operator-token-of-the-tests"
READY_TIMEOUT_S = 40.0


class ConsoleProcess(ManagedProcess):
    """``rebalance console`` on a free port."""

    def __init__(self, *, log_path: Path, env: Mapping[str, str]) -> None:
        self.port = free_port()
        code = "from rebalance_tasks.cli import main; main()"
        tokens = {"REBALANCE_CONSOLE_VIEWER_TOKEN": VIEWER, "REBALANCE_CONSOLE_OPERATOR_TOKEN": OPERATOR}
        super().__init__(
            "console",
            [sys.executable, "-c", code, "console", "--port", str(self.port)],
            log_path=log_path,
            env={**env, **tokens, "PYTHONPATH": str(SOURCE_ROOT)},
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_ready(self) -> ConsoleProcess:
        """Wait until it answers."""

        def answers() -> bool:
            self.require_alive()
            with suppress(httpx2.TransportError):
                return httpx2.get(f"{self.url}/healthz", timeout=2).is_success
            return False

        wait_until(answers, READY_TIMEOUT_S, "the console answers")
        return self


@dataclass
class ConsoleWorld:
    """One fleet, its worker and its console."""

    fleet: Fleet
    rebalancer: Rebalancer
    console: ConsoleProcess
    env: Mapping[str, str]

    def stop_jobs(self) -> None:
        """Cancel what runs, for the next test."""
        active = context_of(self.rebalancer).jobs.active()
        if active is not None:
            self.rebalancer.cancel(active)
            wait_for(self.rebalancer, active)


@contextmanager
def console_world(
    directory: Path,
    nodes: Mapping[str, NodeSpec],
    *,
    options: Mapping[str, Any] | None = None,
    fleet: Mapping[str, Any] | None = None,
    concurrency: int = 1,
) -> Iterator[ConsoleWorld]:
    """Start a server, a worker (none with ``concurrency=0``) and a console; all end with the context."""
    (directory / "redis").mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith("REBALANCE_")}
    with start_server(directory / "redis") as server:
        made = write_fleet(directory, redis_url=server.url, nodes=nodes, options=options, fleet=fleet)
        env["REBALANCE_CONFIG"] = str(made.config)
        factory = ProcessFactory(directory, server.url)
        console = ConsoleProcess(log_path=directory / "console.log", env=env)
        factory.started.append(console)
        try:
            if concurrency:
                factory.worker(env=env, concurrency=concurrency, extra=("-E",))
            yield ConsoleWorld(made, rebalancer_of(made), console.wait_ready(), env)
        finally:
            factory.stop_all()
            # Captured output of the teardown is part of a failing test's report only.
            print(factory.logs())  # noqa: T201
