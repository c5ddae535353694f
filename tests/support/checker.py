"""The independent checker: compares nodes on disk with what was written, knowing nothing of how objects move.

It imports none of the package: what is wrong in the product cannot hide here. It holds the promises of the design that
can be seen from outside: every object stands whole, exactly once, with the right bytes; no half-made file is left; the
counts add up and agree with where the objects are.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

RESERVED = ".rebalance"
CHUNK = 1 << 20


class Counts(Protocol):
    """What a job says of itself."""

    @property
    def total_moves(self) -> int: ...
    @property
    def completed_moves(self) -> int: ...
    @property
    def failed_moves(self) -> int: ...
    @property
    def skipped_moves(self) -> int: ...


@dataclass(frozen=True)
class Written:
    """What was written: key -> digest, and key -> the node it was written to.

    Attributes:
        also: key -> digests that are right as well (a stranger's write that raced with a move).
        deletable: keys that a stranger deleted while they may have been on their way.
    """

    digests: Mapping[str, str]
    origins: Mapping[str, str]
    also: Mapping[str, frozenset[str]] = field(default_factory=dict)
    deletable: frozenset[str] = frozenset()

    def right(self, key: str, digest: str) -> bool:
        """Whether an object may have these bytes."""
        return digest == self.digests[key] or digest in self.also.get(key, ())

    def changed(self, key: str, content: bytes) -> Written:
        """The same, after a stranger wrote to one object."""
        return replace(self, digests={**self.digests, key: hashlib.sha256(content).hexdigest()})

    def without(self, *keys: str) -> Written:
        """The same, after a stranger deleted objects."""
        return replace(self, digests={key: digest for key, digest in self.digests.items() if key not in keys})


@dataclass
class Found:
    """What a walk over the nodes found: key -> [(node, digest)], and our own files by folder."""

    objects: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    ours: dict[str, list[str]] = field(default_factory=dict)


def digest_of(path: Path | str) -> str:
    """Digest of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:  # noqa: PTH123  paths here may be bytes-odd text; one way for all
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def walk(root: Path) -> Iterator[tuple[str, str]]:
    """Yield (key, path) of every regular file below a root, our own folder included."""
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118  as above
            if stat.S_ISREG(os.lstat(path).st_mode):
                yield os.path.relpath(path, root), path


def look(roots: Mapping[str, Path]) -> Found:
    """Walk all nodes."""
    found = Found()
    for node, root in roots.items():
        for key, path in walk(root):
            folder, _, rest = key.partition("/")
            if folder == RESERVED:
                found.ours.setdefault(rest.partition("/")[0], []).append(f"{node}:{key}")
            else:
                found.objects.setdefault(key, []).append((node, digest_of(path)))
    return found


def record(roots: Mapping[str, Path]) -> Written:
    """Take down what stands on the nodes before a job; a key on two nodes is refused."""
    found = look(roots)
    doubled = [key for key, places in found.objects.items() if len(places) > 1]
    assert not doubled, f"on two nodes before anything began: {doubled}"
    return Written(
        {key: places[0][1] for key, places in found.objects.items()},
        {key: places[0][0] for key, places in found.objects.items()},
    )


def object_violations(found: Found, written: Written) -> list[str]:
    """Every object exactly once, with the right bytes, and nothing else."""
    missing = written.digests.keys() - found.objects.keys() - written.deletable
    problems = [f"lost: {key!r}" for key in sorted(missing)]
    problems += [f"appeared: {key!r}" for key in sorted(found.objects.keys() - written.digests.keys())]
    for key in sorted(written.digests):
        places = found.objects.get(key, [])
        if len(places) > 1:
            problems.append(f"on several nodes: {key!r} on {', '.join(node for node, _ in places)}")
        problems += [f"wrong bytes: {key!r} on {node}" for node, seen in places if not written.right(key, seen)]
    return problems


def leftover_violations(found: Found, *, trash: bool) -> list[str]:
    """No half-made copy, no half-written manifest; with ``trash`` nothing freed is left either."""
    folders = ("tmp", "trash", "kept") if trash else ("tmp", "kept")
    problems = [f"left over: {path}" for folder in folders for path in found.ours.get(folder, [])]
    half = [path for path in found.ours.get("manifests", []) if path.rpartition("/")[2].startswith(".")]
    return problems + [f"half-written: {path}" for path in half]


def count_violations(found: Found, written: Written, job: Counts) -> list[str]:
    """The counts add up, and as many objects changed their node as the job says it completed."""
    problems: list[str] = []
    counted = job.completed_moves + job.failed_moves + job.skipped_moves
    if counted != job.total_moves:
        problems.append(f"counts: {counted} counted of {job.total_moves} moves")
    moved = sum(
        1
        for key, places in found.objects.items()
        if key in written.origins and any(node != written.origins[key] for node, _ in places)
    )
    if moved != job.completed_moves:
        problems.append(f"counts: {job.completed_moves} completed, but {moved} objects changed their node")
    return problems


def violations(
    roots: Mapping[str, Path], written: Written, job: Counts | None = None, *, trash: bool = False
) -> list[str]:
    """Everything that is wrong; an empty list is what every test wants."""
    found = look(roots)
    problems = object_violations(found, written) + leftover_violations(found, trash=trash)
    return problems + (count_violations(found, written, job) if job is not None else [])


def check(roots: Mapping[str, Path], written: Written, job: Counts | None = None, *, trash: bool = False) -> None:
    """Fail with everything that is wrong.

    Args:
        roots: node -> directory.
        written: what must be there.
        job: whose counts must agree with where the objects are.
        trash: also that no freed object is left in a trash.
    """
    _fail(violations(roots, written, job, trash=trash))


def _fail(problems: Iterable[str]) -> None:
    shown = list(problems)
    assert not shown, "\n".join(["the checker found:", *shown])
