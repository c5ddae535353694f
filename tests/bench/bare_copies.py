"""What a second process brings on this machine to copies that nobody manages: read, hash, write, read back, hash; files in memory.

The yardstick beside two workers: where memory is shared, two processes do not bring twice the throughput, whoever they work for.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

_CODE: Final = """
import os, sys, xxhash
source, target, share, of, size = *sys.argv[1:3], *map(int, sys.argv[3:])
names, buffer = sorted(os.listdir(source))[share::of], bytearray(size)
def read(path):
    fd = os.open(path, os.O_RDONLY)
    os.readv(fd, [buffer])
    os.close(fd)
    return xxhash.xxh3_64_digest(buffer)
print("ready", flush=True)
sys.stdin.readline()
for name in names:
    told = read(f"{source}/{name}")
    fd = os.open(f"{target}/{name}", os.O_CREAT | os.O_WRONLY)
    os.write(fd, buffer)
    os.close(fd)
    if read(f"{target}/{name}") != told:
        sys.exit("a copy differs")
"""


def second_process(folder: Path, *, size_bytes: int, files: int, rounds: int) -> tuple[float, dict[str, list[float]]]:
    """Return how many times as much two processes copy as one, and seconds of both, by rounds in turn."""
    source, target = (Path(tempfile.mkdtemp(prefix="bare-", dir=folder)) for _ in range(2))
    content = os.urandom(size_bytes)
    for number in range(files):
        (source / f"{number:05}").write_bytes(content)
    seconds: dict[str, list[float]] = {"one": [], "two": []}
    for _ in range(rounds):
        for name, processes in (("one", 1), ("two", 2)):
            seconds[name].append(_copied(source, target, processes, size_bytes))
            for path in target.iterdir():
                path.unlink()
    for path in source.iterdir():
        path.unlink()
    ratio = statistics.median(one / two for one, two in zip(seconds["one"], seconds["two"], strict=True))
    return ratio, seconds


def _copied(source: Path, target: Path, processes: int, size_bytes: int) -> float:
    """Seconds that so many processes take for all files together, from their common beginning."""
    command = [sys.executable, "-c", _CODE, str(source), str(target)]
    running = [
        subprocess.Popen(
            [*command, str(at), str(processes), str(size_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for at in range(processes)
    ]
    for one in running:
        if one.stdout is not None:
            one.stdout.readline()
    begun = time.perf_counter()
    for one in running:
        if one.stdin is not None:
            one.stdin.write("\n")
            one.stdin.close()
    ended = [one.wait() for one in running]
    seconds = time.perf_counter() - begun
    for one in running:
        if one.stdout is not None:
            one.stdout.close()
    if any(ended):
        sys.exit("a process that copies has failed")
    return seconds
