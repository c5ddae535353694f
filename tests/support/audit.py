"""The judge of the chaos rounds: compares nodes, Redis and the strangers' log. It imports none of the package.

It reads the nodes as files and Redis as raw keys, by what docs/architecture.md says of them, so that what is wrong in our
store or migration code cannot hide here. Every byte that was written must be at exactly one place, or a stranger deleted it.
"""

from __future__ import annotations

import json
import os
import stat
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from tests.support import objects

if TYPE_CHECKING:
    from collections.abc import Mapping

    import redis

    from tests.support.strangers import WriteLog

RESERVED: Final = ".rebalance"
TERMINAL: Final = {"completed", "failed", "cancelled"}
#: Outcomes by which a job tells an operator that two versions exist and somebody has to choose.
TOLD: Final = {"conflict", "target_exists", "source_changed", "worker_died", "source_vanished"}


@dataclass(frozen=True)
class Place:
    """One file that holds (a version of) an object."""

    node: str
    key: str
    tokens: tuple[int, ...]


@dataclass
class Findings:
    """What stands on the nodes."""

    visible: dict[str, list[Place]] = field(default_factory=lambda: defaultdict(list))
    #: node:path of everything in our folders, by folder
    ours: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    #: object -> tokens seen in the trash, in kept files and in staged copies
    hidden: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    #: node:path in the trash -> object
    trashed: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def files(root: Path) -> list[tuple[str, Path]]:
    """(path below the root, path) of every regular file."""
    found: list[tuple[str, Path]] = []
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            if stat.S_ISREG(path.lstat().st_mode):
                found.append((path.relative_to(root).as_posix(), path))
    return found


def look(roots: Mapping[str, Path], log: WriteLog) -> Findings:
    """Read everything on all nodes."""
    found = Findings()
    for node, root in roots.items():
        for key, path in files(root):
            if key.partition("/")[0] == RESERVED:
                _ours(found, node, key, path)
                continue
            seen = objects.read(path.read_bytes())
            oid = log.oids.get(key)
            if oid is None:
                found.problems.append(f"appeared: {node}:{key}")
            elif seen is None:
                found.problems.append(f"torn: {node}:{key}, {path.stat().st_size} bytes")
            elif seen.oid != oid and not (seen.oid == "" and key.startswith("empty/")):
                found.problems.append(f"swapped: {node}:{key} holds {seen.oid or 'nothing'} instead of {oid}")
            else:
                found.visible[oid].append(Place(node, key, seen.tokens))
    return found


def _ours(found: Findings, node: str, key: str, path: Path) -> None:
    _, _, rest = key.partition("/")
    folder = rest.partition("/")[0]
    found.ours[folder].append(f"{node}:{key}")
    if folder in {"trash", "kept", "tmp"}:
        seen = objects.read(path.read_bytes())
        if seen is not None:
            found.hidden[seen.oid].update(seen.tokens)
            if folder == "trash":
                found.trashed[f"{node}:{key}"] = seen.oid


# -- objects ------------------------------------------------------------------------------------------------------------
def object_problems(found: Findings, log: WriteLog, told: set[str]) -> list[str]:
    """Every object is somewhere, once; every appended byte is in it."""
    problems = list(found.problems)
    for oid, keys in sorted(log.keys().items()):
        places = found.visible.get(oid, [])
        deleted = any(event.kind == "delete" for event in log.of(oid))
        if not places and not deleted:
            problems.append(f"lost: {oid} ({', '.join(keys)})")
        for place in places:
            doubled = [token for token, n in Counter(place.tokens).items() if n > 1]
            if doubled:
                problems.append(f"appended twice: {oid} on {place.node}: {doubled}")
        problems += _doubled(oid, places, told)
        if not deleted:
            problems += _lost_appends(found, log, oid)
    return problems


def _doubled(oid: str, places: list[Place], told: set[str]) -> list[str]:
    """A key is on one node, unless strangers wrote to both copies, or to one and the job says so."""
    by_key: defaultdict[str, list[Place]] = defaultdict(list)
    for place in places:
        by_key[place.key].append(place)
    return [
        f"on several nodes: {oid} {key}: {', '.join(f'{place.node} {place.tokens}' for place in same)}"
        for key, same in by_key.items()
        if len(same) > 1 and not _diverged(same) and not (key in told and _written_to(same))
    ]


def _lost_appends(found: Findings, log: WriteLog, oid: str) -> list[str]:
    """What stood at a key after it was written is at a key; what raced with a move is at least somewhere."""
    problems: list[str] = []
    in_place = {token for place in found.visible.get(oid, []) for token in place.tokens}
    for event in log.of(oid):
        if event.kind != "append" or event.token in in_place:
            continue
        where = f"{oid} {event.node}:{event.key} token {event.token}"
        hidden = event.token in found.hidden[oid]
        if event.stood:
            problems.append(f"an append is lost: {where}{' (it is in a folder of ours)' if hidden else ''}")
        elif not hidden:
            problems.append(f"a racing append is nowhere: {where}")
    return problems


def _diverged(places: list[Place]) -> bool:
    """Whether a stranger wrote to each of the copies something that the others lack: nobody may choose between them."""
    sets = [set(place.tokens) for place in places]
    return all(mine - set().union(*(other for other in sets if other is not mine)) for mine in sets)


def _written_to(places: list[Place]) -> bool:
    """Whether the copies differ by what a stranger wrote to one of them."""
    return len({place.tokens for place in places}) > 1


def leftover_problems(found: Findings, log: WriteLog) -> list[str]:
    """Nothing of ours but manifests and the node's identity is left.

    One thing may stay: the trash of a move that Redis lost and whose copy a stranger has renamed or deleted since. Nothing
    tells whether it is the last one, so it must not be purged.
    """
    left = [path for folder in ("tmp", "trash", "kept") for path in found.ours.get(folder, [])]
    left = [path for path in left if not _taken_by_a_stranger(log, found.trashed.get(path, ""))]
    half = [path for path in found.ours.get("manifests", []) if path.rpartition("/")[2].startswith(".")]
    return [f"left over: {path}" for path in left] + [f"half-written: {path}" for path in half]


def _taken_by_a_stranger(log: WriteLog, oid: str) -> bool:
    return any(event.kind in {"rename", "delete"} for event in log.of(oid))


# -- Redis ----------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Job:
    """A job as its raw keys say."""

    job_id: str
    record: dict[str, str]
    states: str
    causes: dict[str, int]
    #: index -> (key, source, target)
    moves: dict[int, tuple[str, str, str]]
    outcomes: dict[int, str]


def jobs_of(client: redis.Redis, prefix: str, job_ids: list[str]) -> list[Job]:
    """Read jobs from their raw keys, in the order given."""
    found: list[Job] = []
    for job_id in job_ids:
        base = f"{prefix}job:{job_id}"
        record = _hash(client, base)
        groups = {group_id: json.loads(text) for group_id, text in _hash(client, f"{base}:groups").items()}
        moves: dict[int, tuple[str, str, str]] = {}
        for name, stretch in _raw_hash(client.connection_pool.connection_kwargs, f"{base}:moves").items():
            group = groups[name.rpartition(":")[0]]
            place, _, packed = stretch.partition(b"\n")
            for index, (key, _) in enumerate(json.loads(zlib.decompress(packed)), int(place.split()[0])):
                moves[index] = (key, group["source"], group["target"])
        outcomes = {int(i): json.loads(text)["cause"] for i, text in _hash(client, f"{base}:outcomes").items()}
        causes = {cause: int(n) for cause, n in _hash(client, f"{base}:causes").items()}
        states = cast("str | None", client.get(f"{base}:states")) or ""
        found.append(Job(job_id, record, states, causes, moves, outcomes))
    return found


def _hash(client: redis.Redis, key: str) -> dict[str, str]:
    return cast("dict[str, str]", client.hgetall(key))


def _raw_hash(options: Mapping[str, Any], key: str) -> dict[str, bytes]:
    import redis as library  # a second client: these values are no text

    with library.Redis(host=options["host"], port=options["port"], db=options["db"]) as raw:
        return {name.decode(): value for name, value in cast("dict[bytes, bytes]", raw.hgetall(key)).items()}


def count_problems(job: Job) -> list[str]:
    """The counts add up and are those of the moves' bytes."""
    total = len(job.states)
    counted = {name: job.states.count(byte) for name, byte in (("completed", "c"), ("failed", "f"), ("skipped", "s"))}
    problems: list[str] = []
    if job.record.get("status") not in TERMINAL:
        return [f"{job.job_id} is {job.record.get('status')}: {job.states}"]
    if sum(counted.values()) != total:
        problems.append(f"{job.job_id}: terminal with open moves: {job.states}")
    shown = {name: int(job.record.get(name, 0)) for name in counted}
    if shown != counted:
        problems.append(f"{job.job_id}: counts {shown}, but the moves say {counted}")
    if sum(job.causes.values()) != counted["failed"] + counted["skipped"]:
        problems.append(f"{job.job_id}: causes {job.causes} for {counted}")
    return problems


def place_problems(found: Findings, log: WriteLog, jobs: list[Job]) -> list[str]:
    """What the last job completed is where it says, unless a stranger acted on it.

    A stranger acts also by writing to the copy that a later job had made when Redis forgot it: that copy is then the object.
    """
    last: dict[str, tuple[Job, int]] = {}
    for job in jobs:
        for index, (key, _, _) in job.moves.items():
            if job.states[index] == "c":
                last[key] = (job, index)
    problems: list[str] = []
    for key, (job, index) in sorted(last.items()):
        oid = log.oids.get(key, "")
        if _taken_by_a_stranger(log, oid):
            continue
        nodes = {place.node for place in found.visible.get(oid, []) if place.key == key}
        if job.moves[index][2] not in nodes and not _written_on_its_way(log, jobs, key, job.moves[index][2], nodes):
            problems.append(
                f"{job.job_id}.{index}: {key} completed to {job.moves[index][2]}, but is on {sorted(nodes)}"
            )
    return problems


def _written_on_its_way(log: WriteLog, jobs: list[Job], key: str, node: str, nodes: set[str]) -> bool:
    """Whether a move that is not counted as completed led from a node to the one that holds the key, and somebody wrote to it there."""
    led = {move[2] for job in jobs for move in job.moves.values() if move[:2] == (key, node)}
    wrote = {event.node for event in log.of(log.oids.get(key, "")) if event.kind == "append" and event.stood}
    return bool(nodes) and nodes <= led & wrote


def redis_problems(client: redis.Redis, prefix: str, jobs: list[Job]) -> list[str]:
    """Nothing is held, promised, pending or in flight."""
    problems: list[str] = []
    empty = ["active", "permits", "frees", "frees:batches", "undos", "trash", "trash:batches", "trash:due"]
    empty += [f"job:{job.job_id}:{name}" for job in jobs for name in ("journal", "queue", "paused")]
    problems += [
        f"left in Redis: {name}: {_shown(client, prefix + name)}" for name in empty if client.exists(prefix + name)
    ]
    problems += [
        f"still reserved: {key}: {_hash(client, key)}"
        for key in client.scan_iter(f"{prefix}reserved:*")
        if any(int(float(value)) for value in _hash(client, key).values())
    ]
    awaiting = {node: n for node, n in _hash(client, f"{prefix}awaiting").items() if int(n)}
    if awaiting:
        problems.append(f"awaiting release, though the trash is empty: {awaiting}")
    return problems


def _shown(client: redis.Redis, key: str) -> str:
    kind = client.type(key)
    if kind == "hash":
        return repr(_hash(client, key))[:400]
    return repr(client.get(key) if kind == "string" else kind)


def forwarding_problems(client: redis.Redis, prefix: str, found: Findings, log: WriteLog) -> list[str]:
    """A forwarding leads to a node that holds the object, if any does."""
    problems: list[str] = []
    for key, value in _hash(client, f"{prefix}forwarding").items():
        node = value.rpartition("|")[0]
        holders = {place.node for place in found.visible.get(log.oids.get(key, ""), []) if place.key == key}
        if holders and node not in holders:
            problems.append(f"forwarding of {key} leads to {node}, but it is on {sorted(holders)}")
    return problems


def locate_problems(found: Findings, answers: Mapping[str, str | None]) -> list[str]:
    """What ``locate`` answered (key -> node) is where the object is."""
    problems: list[str] = []
    for places in found.visible.values():
        for place in places:
            holders = {other.node for other in places if other.key == place.key}
            if answers.get(place.key) not in holders:
                problems.append(f"locate({place.key}) said {answers.get(place.key)}, it is on {sorted(holders)}")
    return sorted(set(problems))


def audit(
    roots: Mapping[str, Path],
    log: WriteLog,
    client: redis.Redis,
    prefix: str,
    *,
    job_ids: list[str],
    answers: Mapping[str, str | None],
) -> list[str]:
    """Everything that is wrong; an empty list is what every round wants."""
    found = look(roots, log)
    jobs = jobs_of(client, prefix, job_ids)
    told = {job.moves[i][0] for job in jobs for i, cause in job.outcomes.items() if cause in TOLD and i in job.moves}
    problems = object_problems(found, log, told) + leftover_problems(found, log)
    for job in jobs:
        problems += count_problems(job)
    problems += place_problems(found, log, jobs)
    problems += redis_problems(client, prefix, jobs)
    problems += forwarding_problems(client, prefix, found, log)
    return problems + locate_problems(found, answers)
