"""Hosts on one machine: workers that see their own disks and what is exported to them, and reach Redis by a line of their own.

Where the kernel lets us, each worker of a host lives in a mount and a network namespace: other hosts' private disks are
empty folders there, and the only way out is a socket that a proxy listens on, which a test may cut. Elsewhere (`isolated`
is False) hosts differ by their queues, roots and lines alone.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rebalance_tasks.demo.processes import ManagedProcess
from tests.support.fleets import NodeSpec
from tests.support.proxy import ChaosProxy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.fleets import Content, Fleet

HOSTS: Final = ("h1", "h2", "h3")
#: Every host serves it: it stands for the disks that all of them mount.
SHARED: Final = "lan"
CAPACITY: Final = 10**7


def private(host: str) -> str:
    """The disk that only its host reaches."""
    return f"p-{host}"


def exported(host: str) -> str:
    """The disk that the others mount."""
    return f"s-{host}"


def nodes_of_hosts(files: Mapping[str, Mapping[str, Content]], *, capacity: int = CAPACITY) -> dict[str, NodeSpec]:
    """Two disks a host: one of its own, one that it exports."""
    return {
        node: NodeSpec(files.get(node, {}), capacity, {"queue": queues, "host": host})
        for host in HOSTS
        for node, queues in ((private(host), [host]), (exported(host), [host, SHARED]))
    }


@cache
def namespaces(*kinds: str) -> tuple[str, ...]:
    """What to put before a command so that it gets namespaces of its own, by default for mounts and the network; empty where that cannot be."""
    program = shutil.which("unshare")
    wanted = kinds or ("--mount", "--net")
    for options in (wanted, ("--user", "--map-root-user", *wanted)):
        if program is None:
            break
        tried = subprocess.run([program, *options, "true"], capture_output=True, check=False)
        if tried.returncode == 0:
            return (program, *options)
    return ()


@dataclass
class Host:
    """One host.

    Attributes:
        line: between it and Redis.
        workers: its processes that may live.
    """

    name: str
    fleet: Fleet
    folder: Path
    server_port: int
    control: bool = False
    isolated: bool = field(default_factory=lambda: bool(namespaces()))
    workers: list[ManagedProcess] = field(default_factory=list)
    started: int = 0

    def __post_init__(self) -> None:
        #: short, since a socket's path may have 107 characters only
        self._sockets = Path(tempfile.mkdtemp(prefix="hosts-"))
        self.line = ChaosProxy(self.server_port, path=self._sockets / "redis" if self.isolated else None)

    @property
    def queues(self) -> list[str]:
        """What its workers serve."""
        return [
            *(["rebalance.control"] if self.control else []),
            f"rebalance.data.{self.name}",
            f"rebalance.data.{SHARED}",
        ]

    def start(self, *, env: Mapping[str, str] | None = None, concurrency: int = 2) -> ManagedProcess:
        """Start a worker; it says itself when it is ready (`Rebalancer.workers`)."""
        self.started += 1
        command = [
            *(sys.executable, "-m", "celery", "-A", "rebalance_tasks", "worker", "--pool", "prefork", "-l", "WARNING"),
            *("--concurrency", str(concurrency), "-n", f"{self.name}-{self.started}@{self.name}"),
            *("-Q", ",".join(self.queues)),
        ]
        worker = ManagedProcess(
            f"worker of {self.name}",
            self._on_this_host(command),
            log_path=self.folder / f"{self.name}-{self.started}.log",
            env={**os.environ, **(env or {}), "REBALANCE_REDIS_URL": self.line.url},
        )
        self.workers.append(worker)
        return worker

    def _on_this_host(self, command: list[str]) -> list[str]:
        if not self.isolated:
            return command
        hidden = [self.fleet.roots[private(other)] for other in HOSTS if other != self.name]
        mounts = [f"mount -t tmpfs none {shlex.quote(str(root))}" for root in hidden if root.is_dir()]
        return [*namespaces(), "sh", "-ec", "; ".join([*mounts, 'exec "$@"']), "sh", *command]

    def die(self) -> None:
        """For good: its processes, and all that lay on its disks."""
        for worker in self.workers:
            worker.kill()
        for root in (self.fleet.roots[private(self.name)], self.fleet.roots[exported(self.name)]):
            if root.is_dir():
                root.rename(grave(root))

    def cut_off(self, for_s: float = 3600.0) -> None:
        """Its line to Redis: silence, either way. What was on its way arrives when the line is mended, late."""
        self.line.stall(for_s)

    def back(self) -> None:
        """The line is mended."""
        self.line.calm()

    def end(self) -> None:
        """End it and its line."""
        for worker in self.workers:
            worker.kill()
        self.line.close()
        shutil.rmtree(self._sockets, ignore_errors=True)


def grave(root: Path) -> Path:
    """Where what lay on a dead host's disk can still be looked at."""
    return root.with_name(f"{root.name}-dead")
