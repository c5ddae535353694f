"""Moving bytes against rclone + ``sync``, durable on a disk: the cases of `bench_copy`, whose time is mostly the disk's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench import bench_copy

if TYPE_CHECKING:
    from tests.bench.report import Report


def run(report: Report) -> None:
    """Measure each case on the disk that holds temporary files, that which takes longest last."""
    bench_copy.measure(report, durable=True, cases=bench_copy.CASES[::-1])
