"""Measure `LocalDriver.list_objects` against a bare scandir + stat of the same files.

Usage::

    python tests/bench/bench_listing.py [--files 200000] [--rounds 5] [--dir DIR] [--json samples.json]

Rounds alternate, so that both see the same caches; the ratio is best over best. Exits 1 when it is above ``--limit``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rebalance_tasks.drivers.local.driver import LocalDriver
from tests.bench.report import Figure

if TYPE_CHECKING:
    from tests.bench.report import Report

#: Files in one folder, and folders in one: a common shape of object trees.
FAN_OUT: Final = 200


def fill(root: Path, files: int) -> None:
    """Make ``files`` empty files, `FAN_OUT` a folder, two levels deep."""
    for number in range(0, files, FAN_OUT):
        folder = root / f"{number // FAN_OUT % 16:02x}" / f"{number:08d}"
        folder.mkdir(parents=True)
        for index in range(number, min(number + FAN_OUT, files)):
            os.close(os.open(folder / f"object-{index:08d}.bin", os.O_CREAT | os.O_WRONLY))


def scan_and_stat(root: str) -> int:
    """The yardstick: visit and stat every file, and keep nothing."""
    count, folders = 0, [root]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    entry.stat(follow_symlinks=False)
                    count += 1
    return count


def measure(root: Path, files: int, rounds: int) -> dict[str, list[float]]:
    """Return seconds of each round."""
    driver = LocalDriver("bench", str(root))
    driver.adopt()
    samples: dict[str, list[float]] = {"scandir_stat_s": [], "list_objects_s": []}
    for _ in range(rounds):
        begun = time.perf_counter()
        scanned = scan_and_stat(str(root))
        between = time.perf_counter()
        listed = len(driver.list_objects().keys)
        ended = time.perf_counter()
        if (scanned, listed) != (files + 1, files):  # the yardstick also sees node-id
            sys.exit(f"wrong counts: scandir {scanned}, list_objects {listed}, expected {files}")
        samples["scandir_stat_s"].append(between - begun)
        samples["list_objects_s"].append(ended - between)
    driver.close()
    return samples


def run(report: Report, *, files: int = 200_000, rounds: int = 5) -> None:
    """Measure for the common report."""
    root = Path(tempfile.mkdtemp(prefix="rebalance-bench-"))
    try:
        fill(root, files)
        samples = measure(root, files, rounds)
    finally:
        shutil.rmtree(root)
    ours, bare = min(samples["list_objects_s"]), min(samples["scandir_stat_s"])
    report.add(
        Figure(
            name=f"listing {files} local objects ÷ scandir + stat",
            value=ours / bare,
            unit="×",
            limit=1.1,
            command="python -m tests.bench listing",
            samples=samples,
            detail=f"{ours:.2f} s against {bare:.2f} s",
        ),
    )


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--dir", type=Path, default=None, help="where to make the files (default: the system's temp folder)"
    )
    parser.add_argument("--limit", type=float, default=1.1, help="highest ratio that passes")
    parser.add_argument("--json", type=Path, default=None, help="write the samples here")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="rebalance-bench-", dir=options.dir))
    try:
        fill(root, options.files)
        samples = measure(root, options.files, options.rounds)
    finally:
        shutil.rmtree(root)
    ratio = min(samples["list_objects_s"]) / min(samples["scandir_stat_s"])
    print(
        f"{options.files} files: scandir+stat {min(samples['scandir_stat_s']):.3f} s, list_objects {min(samples['list_objects_s']):.3f} s"
    )
    print(f"ratio {ratio:.2f} (limit {options.limit})")
    if options.json is not None:
        report = {"bench": "listing", "files": options.files, "ratio": ratio, "limit": options.limit, **samples}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if ratio <= options.limit else 1


if __name__ == "__main__":
    raise SystemExit(main())
