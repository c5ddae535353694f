"""Counts accesses in S3 server access logs: how often each key was read and written, and over how many hours.

Lines that are no accesses of objects, and lines that cannot be read, are passed over: a log is a hint, never a reason to stop.
Source: "Amazon S3 server access log format" in the S3 user guide; MinIO, Ceph and SeaweedFS write the same lines.
"""

from __future__ import annotations

import re
from collections import defaultdict
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_plus

from rebalance_tasks.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: owner bucket [time] ip requester request-id operation key …
_LINE: Final = re.compile(
    r"\S+ \S+ \[(?P<time>[^\]]+)\] \S+ \S+ \S+ (?P<operation>REST\.(?:GET|HEAD|PUT|POST)\.\w+) (?P<key>\S+) "
)
_TIME: Final = "%d/%b/%Y:%H:%M:%S %z"
_WRITES: Final = ("REST.PUT.", "REST.POST.")


def count_accesses(lines: Iterable[str]) -> tuple[dict[str, tuple[int, int]], float]:
    """Return key → (reads, writes), and the hours between the first and the last line (at least one)."""
    counts: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    first: datetime | None = None
    last: datetime | None = None
    for line in lines:
        found = _LINE.match(line)
        if found is None or found["key"] == "-":
            continue
        try:
            moment = datetime.strptime(found["time"], _TIME).astimezone(UTC)
        except ValueError:
            continue
        first, last = min(first or moment, moment), max(last or moment, moment)
        # S3 encodes keys twice in its logs, for reasons of its own.
        counts[unquote_plus(unquote_plus(found["key"]))][found["operation"].startswith(_WRITES)] += 1
    hours = (last - first).total_seconds() / 3600 if first is not None and last is not None else 0.0
    return {key: (reads, writes) for key, (reads, writes) in counts.items()}, max(1.0, hours)


def read_access_log(path: Path) -> tuple[Mapping[str, tuple[int, int]], float]:
    """Count the accesses of a file, or of every file in a folder. Raises: ConfigurationError."""
    try:
        files = list(filter(Path.is_file, sorted(path.iterdir()))) if path.is_dir() else [path]
        return _counted(tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files))
    except OSError as exc:
        msg = f"[gravity] access: the log {str(path)!r} cannot be read: {exc.strerror}; name a file or a folder of logs"
        raise ConfigurationError(msg) from exc


@lru_cache(maxsize=1)
def _counted(versions: tuple[tuple[Path, int, int], ...]) -> tuple[Mapping[str, tuple[int, int]], float]:
    """Count once what a task asks for with each of its nodes: files with their times of change and sizes."""

    def lines() -> Iterable[str]:
        for file, _, _ in versions:
            with file.open(encoding="utf-8", errors="replace") as text:
                yield from text

    return count_accesses(lines())
