"""Flower as a real process, with a password, for tests that read its API."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx2

from rebalance_tasks.demo.processes import SOURCE_ROOT, ManagedProcess
from rebalance_tasks.embedded import free_port
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

USER = ("operator", "flower-password-of-the-tests")
READY_TIMEOUT_S = 60.0


class FlowerProcess(ManagedProcess):
    """``celery -A rebalance_tasks flower`` on loopback, as docs/how-to/watch-with-flower.md starts it."""

    def __init__(self, *, log_path: Path, env: Mapping[str, str]) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        command = ["-m", "celery", "-A", "rebalance_tasks", "flower", "--address=127.0.0.1", f"--port={port}"]
        settings = {"FLOWER_BASIC_AUTH": ":".join(USER), "PYTHONPATH": str(SOURCE_ROOT)}
        super().__init__("flower", [sys.executable, *command], log_path=log_path, env={**env, **settings})

    def wait_ready(self) -> FlowerProcess:
        """Wait until it answers."""

        def answers() -> bool:
            self.require_alive()
            with suppress(httpx2.TransportError):
                return httpx2.get(f"{self.url}/healthcheck", timeout=5).is_success
            return False

        wait_until(answers, READY_TIMEOUT_S, "Flower answers", interval_s=0.1)
        return self

    def get(self, path: str, *, auth: tuple[str, str] | None = USER) -> httpx2.Response:
        """Ask its API."""
        return httpx2.get(f"{self.url}/api{path}", auth=auth, timeout=10)

    def tasks(self) -> dict[str, Any]:
        """Every task it knows, by id; empty while it knows none."""
        answer: dict[str, Any] = self.get("/tasks?limit=500").json()
        return answer
