"""What lies on the nodes, read from disk alone: nothing here asks Redis, the client or a driver.

Used while the fleet is at work (bars, and to see that nothing moves while paused) and, when all processes have ended,
for the final verification.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.errors import PermanentError
from rebalance_tasks.demo.corpus import digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from rebalance_tasks.demo.corpus import DemoNode

#: A node's own folder; its content is no object.
RESERVED: Final = ".rebalance"
#: A few examples tell what went wrong; thousands hide it.
PROBLEMS_SHOWN: Final = 5


class DemoFailed(PermanentError):
    """The demo did not show what it promises; the message says what."""

    cause = "demo_failed"


@dataclass(frozen=True, slots=True)
class NodeUsage:
    """What a node holds: objects at their keys, and copies being made aside."""

    objects: int
    used_bytes: int
    staged_bytes: int


@dataclass(slots=True)
class Verification:
    """What the final look at every byte found."""

    total: int
    verified: int = 0
    verified_bytes: int = 0
    problems: list[str] = field(default_factory=list)

    def require_success(self) -> None:
        """Raise `DemoFailed` unless every object is there, once, whole."""
        if self.problems or self.verified != self.total:
            shown = "\n  ".join(self.problems[:PROBLEMS_SHOWN])
            more = (
                f"\n  … and {len(self.problems) - PROBLEMS_SHOWN} more" if len(self.problems) > PROBLEMS_SHOWN else ""
            )
            msg = f"only {self.verified} of {self.total} objects verified:\n  {shown}{more}"
            raise DemoFailed(msg)


def survey(nodes: Iterable[DemoNode]) -> dict[str, NodeUsage]:
    """Measure all nodes; files may come and go meanwhile."""
    return {node.node_id: _usage(node.root) for node in nodes}


def utilisations(nodes: Iterable[DemoNode], usage: Mapping[str, NodeUsage]) -> dict[str, float]:
    """Used by capacity, by node."""
    return {node.node_id: usage[node.node_id].used_bytes / node.capacity_bytes for node in nodes}


def spread(shares: Mapping[str, float]) -> float:
    """The imbalance: fullest minus emptiest."""
    return max(shares.values()) - min(shares.values())


def staged_files(node: DemoNode) -> list[Path]:
    """Copies being made aside, or left behind."""
    folder = node.root / RESERVED / "tmp"
    return sorted(path for path in folder.rglob("*") if not path.is_dir()) if folder.is_dir() else []


def remove_staged(node_roots: Iterable[Path]) -> None:
    """Remove the copies that nobody is left to resume; none of them was ever visible at a key."""
    for root in node_roots:
        for path in (root / RESERVED / "tmp").rglob("*"):
            if not path.is_dir():
                path.unlink(missing_ok=True)


def trash_files(node: DemoNode) -> list[Path]:
    """Freed originals whose grace is not over."""
    folder = node.root / RESERVED / "trash"
    return sorted(path for path in folder.rglob("*") if not path.is_dir()) if folder.is_dir() else []


def verify(nodes: Iterable[DemoNode], digests: Mapping[str, str]) -> Verification:
    """Read every byte on every node and compare it with the manifest.

    Each object must lie on exactly one node, with its checksum, as a file of its own (not a link to another).
    Nothing else may lie there, and no staged copy may be left.
    """
    result = Verification(total=len(digests))
    places: dict[str, str] = {}
    for node in nodes:
        for path, status in _files(node.root):
            key = path.relative_to(node.root).as_posix()
            where = f"{key} on {node.node_id}"
            if key not in digests:
                result.problems.append(f"{where} is not in the manifest")
            elif key in places:
                result.problems.append(f"{where} lies on {places[key]} too")
            elif not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                result.problems.append(
                    f"{where} is not a file of its own (mode {status.st_mode:o}, {status.st_nlink} links)"
                )
            elif digest(path.read_bytes()) != digests[key]:
                result.problems.append(f"{where} differs from what was copied there")
            else:
                result.verified += 1
                result.verified_bytes += status.st_size
            places.setdefault(key, node.node_id)
        result.problems.extend(f"{path} was left behind" for path in staged_files(node))
    result.problems.extend(f"{key} is nowhere" for key in sorted(digests.keys() - places.keys()))
    return result


def _usage(root: Path) -> NodeUsage:
    objects = used = 0
    for _, status in _files(root):
        objects += 1
        used += status.st_size
    staged = sum(status.st_size for _, status in _files(root / RESERVED / "tmp"))
    return NodeUsage(objects, used, staged)


def _files(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield all that is no folder below ``root``, without the node's own folder at its top."""
    stack = [(root, True)]
    while stack:
        folder, top = stack.pop()
        try:
            with os.scandir(folder) as entries:
                listed = list(entries)
        except FileNotFoundError:
            continue
        for entry in listed:
            if entry.is_dir(follow_symlinks=False):
                if not (top and entry.name == RESERVED):
                    stack.append((folder / entry.name, False))
                continue
            try:
                yield folder / entry.name, entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
