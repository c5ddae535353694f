"""What the demo balances: real files, copied byte by byte onto nodes of different sizes, unevenly and repeatably.

The same source, number of nodes and seed give the same fleet. Each object's checksum is taken from the bytes that were
read from the source, before anything of ours has touched the copy, and is written down in a manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import stat
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.errors import InvalidArgument, InvalidKey
from rebalance_tasks.core.keys import validate_key
from rebalance_tasks.core.options import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

#: Enough to look like a real fleet; the default source is copied again under another name to reach it.
MIN_OBJECTS: Final = 5_000
#: What is copied, read back and removed again file by file: ten seconds of the demo would be spent on three times as many.
MAX_OBJECTS: Final = 10_000
#: So that the whole demo stays under a minute on two cores.
MAX_TOTAL_BYTES: Final = 300 * MIB
#: A planner moves few, large objects; with these it is hundreds of moves, and no giant dwarfs a small node.
MAX_OBJECT_BYTES: Final = MIB // 2
#: Utilisation of the fullest and the emptiest node at the start; the others lie in between.
FULLEST: Final = 0.92
EMPTIEST: Final = 0.18
#: Relative capacities, repeated when there are more nodes.
CAPACITY_STEPS: Final = (1.0, 1.6, 2.4, 1.3, 0.8, 2.0)
ZONES: Final = ("a", "b", "c")
#: Copies, staged copies and what awaits release, with air.
ROOM_FACTOR: Final = 2.5
#: Folders that are not content: caches, version control, and the working folder of a node.
SKIPPED_FOLDERS: Final = frozenset({"__pycache__", ".git", ".rebalance"})
#: Enough to tell two files apart for certain; shorter than the default to keep the manifest small.
DIGEST_BYTES: Final = 20


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to copy, and the key its copy gets."""

    path: Path
    key: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class DemoNode:
    """A directory that plays a storage node."""

    node_id: str
    root: Path
    zone: str
    capacity_bytes: int


@dataclass(frozen=True, slots=True)
class Corpus:
    """The fleet as it was built: its nodes, and the checksum of every object on them."""

    nodes: tuple[DemoNode, ...]
    #: key -> blake2b (hex) of the bytes read from the source.
    digests: Mapping[str, str]
    total_bytes: int


def digest(data: bytes) -> str:
    """Return the checksum the manifest records."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


def collect(source: Path | None, *, seed: int) -> list[SourceFile]:
    """List the files to copy.

    Args:
        source: a directory, or ``None`` for the standard library and the installed packages of the running Python.
        seed: decides which files are taken when there are too many.

    Raises:
        InvalidArgument: the directory is not there, or holds no file that can be taken.
    """
    if source is None:
        paths = sysconfig.get_paths()
        library, packages = Path(paths["stdlib"]), Path(paths["purelib"])
        found = [*_walk(library, "stdlib", skip={packages.name, "dist-packages"}), *_walk(packages, "packages")]
    else:
        if not source.is_dir():
            msg = f"--from {source}: not a directory; give one with files to copy (they are only read)"
            raise InvalidArgument(msg)
        found = list(_walk(source.resolve(), source.resolve().name or "root"))
    if not found:
        msg = f"no files to copy in {source or 'the Python installation'} (symbolic links and files over {MAX_OBJECT_BYTES // KIB} KiB are left out)"
        raise InvalidArgument(msg)
    chosen = _capped(found, seed=seed)
    return chosen if source is not None else _repeated(chosen)


def _walk(root: Path, label: str, *, skip: Iterable[str] = ()) -> Iterator[SourceFile]:
    """Yield the plain, readable files below ``root`` in a fixed order; links are not followed."""
    skipped = SKIPPED_FOLDERS | set(skip)
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in skipped)
        for name in sorted(names):
            path = Path(folder, name)
            try:
                status = path.lstat()
                key = f"{label}/{path.relative_to(root).as_posix()}"
                validate_key(key)
            except (OSError, InvalidKey):
                continue  # gone meanwhile, or a name that is no object's (undecodable, too long)
            if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_OBJECT_BYTES and os.access(path, os.R_OK):
                yield SourceFile(path, key, status.st_size)


def _capped(files: list[SourceFile], *, seed: int) -> list[SourceFile]:
    """Return all files, or as many of them (by chance) as fit under the caps, in their order."""
    total = 0
    chosen: set[str] = set()
    for file in random.Random(seed).sample(files, len(files)):  # noqa: S311  repeatable, not secret
        if len(chosen) < MAX_OBJECTS and total + file.size_bytes <= MAX_TOTAL_BYTES:
            total += file.size_bytes
            chosen.add(file.key)
    return [file for file in files if file.key in chosen]


def _repeated(files: list[SourceFile]) -> list[SourceFile]:
    """Return at least `MIN_OBJECTS` files: a small installation is copied again under other keys."""
    rounds = -(-MIN_OBJECTS // len(files))
    again = (SourceFile(f.path, f"copy{n}/{f.key}", f.size_bytes) for n in range(2, rounds + 1) for f in files)
    return [*files, *again]


def design_nodes(directory: Path, *, count: int, total_bytes: int, seed: int) -> list[tuple[DemoNode, int]]:
    """Lay out the nodes: capacities differ, zones alternate, and each has a number of bytes to be filled with.

    Returns:
        (node, bytes to fill it with); the bytes sum up to about ``total_bytes``.
    """
    chance = random.Random(seed)  # noqa: S311  repeatable, not secret
    step = (FULLEST - EMPTIEST) / (count - 1)
    utilisations = [FULLEST - step * position for position in range(count)]
    chance.shuffle(utilisations)
    relative = [CAPACITY_STEPS[position % len(CAPACITY_STEPS)] for position in range(count)]
    # Chosen so that these utilisations of these capacities hold exactly the bytes there are.
    unit = total_bytes / sum(u * c for u, c in zip(utilisations, relative, strict=True))
    nodes = []
    for position, (utilisation, share) in enumerate(zip(utilisations, relative, strict=True)):
        node_id = f"disk{position + 1}"
        capacity = max(1, round(share * unit))
        node = DemoNode(node_id, directory / "nodes" / node_id, ZONES[position % len(ZONES)], capacity)
        nodes.append((node, round(utilisation * capacity)))
    return nodes


def require_room(directory: Path, files: Iterable[SourceFile]) -> None:
    """Raise `InvalidArgument` when the directory has no room for the demo."""
    total = sum(file.size_bytes for file in files)
    free = shutil.disk_usage(directory).free
    if free < total * ROOM_FACTOR:
        msg = f"{directory} has {free // MIB} MiB free, the demo needs {int(total * ROOM_FACTOR) // MIB} MiB; name another place with --dir"
        raise InvalidArgument(msg)


def build(
    directory: Path, files: Iterable[SourceFile], planned: Sequence[tuple[DemoNode, int]], *, seed: int
) -> Corpus:
    """Copy the files onto the nodes of `design_nodes`, and write the manifest into the directory."""
    remaining = [fill for _, fill in planned]
    nodes = [node for node, _ in planned]
    for node in nodes:
        node.root.mkdir(parents=True)
    digests: dict[str, str] = {}
    made: set[Path] = set()
    copied = 0
    chance = random.Random(seed + 1)  # noqa: S311  repeatable, not secret
    # Largest first: what is small evens out what the large ones left.
    for file in sorted(files, key=lambda file: (-file.size_bytes, file.key)):
        weights = [max(0, room) for room in remaining]
        chosen = chance.choices(range(len(nodes)), weights)[0] if any(weights) else remaining.index(max(remaining))
        try:
            data = file.path.read_bytes()
        except OSError:
            continue  # gone or closed to us since it was listed
        path = nodes[chosen].root / file.key
        if path.parent not in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.add(path.parent)
        _write_whole(path, data)
        digests[file.key] = digest(data)
        remaining[chosen] -= len(data)
        copied += len(data)
    manifest = directory / "manifest.json"
    manifest.write_text(json.dumps(digests, indent=0, sort_keys=True), encoding="utf-8")
    return Corpus(tuple(nodes), digests, copied)


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file, or leave none: a Ctrl-C in the middle must not leave a half-written object."""
    try:
        path.write_bytes(data)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def write_config(path: Path, nodes: Iterable[DemoNode], *, redis_url: str, options: Mapping[str, str | float]) -> None:
    """Write the fleet's ``rebalance.toml``, as an operator would."""
    blocks = [
        ("[fleet]", {"name": "demo", "mode": "auto", "locator": "union", "redis_url": redis_url}),
        ("[options]", options),
    ]
    blocks += [
        (
            "[[nodes]]",
            {
                "node_id": node.node_id,
                "url": node.root.as_uri(),
                "capacity_bytes": node.capacity_bytes,
                "zone": node.zone,
            },
        )
        for node in nodes
    ]
    # A JSON scalar is a TOML scalar, as long as nothing outside the basic plane is escaped.
    lines = [
        "\n".join([head, *(f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in pairs.items())])
        for head, pairs in blocks
    ]
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
