"""Foreign writers and readers on the nodes themselves, and the log of what they did; none of the package is imported.

A stranger appends to, renames, deletes and creates objects wherever it finds them, as applications do that know nothing of
a rebalancer. What it did is logged with its time, a delete or rename before it is done, so that whoever misses an object
knows whether a stranger may have taken it. `UnionReader` is the reader of invariant 1: it looks on all nodes.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.support import objects

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping

RESERVED: Final = ".rebalance"
#: A union reader that misses an object looks again: it may have passed the node before the object came there.
LOOKS: Final = 4


@dataclass(frozen=True)
class Event:
    """One thing that somebody did.

    Attributes:
        at: seconds since the epoch.
        kind: created, append, rename, delete.
        oid: which object.
        node: where.
        key: its key before.
        token: number appended.
        stood: after the append the file was still at its key, so nothing older will do from then on.
        to: its key after a rename.
    """

    at: float
    kind: str
    oid: str
    node: str
    key: str
    token: int = 0
    stood: bool = False
    to: str = ""
    size: int = 0


class WriteLog:
    """Everything that was written, in order; also on disk, for whoever looks into a failure."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()
        self.events: list[Event] = []
        #: key -> object; keys are never used twice
        self.oids: dict[str, str] = {}
        self.gone: set[str] = set()
        self._number = 0

    def note(self, event: Event) -> None:
        with self._lock:
            self.events.append(event)
            if event.kind == "created":
                self.oids[event.key] = event.oid
            elif event.kind == "rename":
                self.oids[event.to] = event.oid
            elif event.kind == "delete":
                self.gone.add(event.oid)
            self._file.write(json.dumps(asdict(event)) + "\n")
            self._file.flush()

    def next_number(self) -> int:
        with self._lock:
            self._number += 1
            return self._number

    def of(self, oid: str) -> list[Event]:
        """What happened to one object."""
        return [event for event in list(self.events) if event.oid == oid]

    def keys(self) -> dict[str, list[str]]:
        """Object -> the keys it has had."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for key, oid in list(self.oids.items()):
            found[oid].append(key)
        return dict(found)

    def close(self) -> None:
        self._file.close()


def create(log: WriteLog, root: Path, node: str, key: str, size: int) -> None:
    """Write a new object whole (by a rename) and note it."""
    oid = f"o{log.next_number():06d}"
    path = root / key
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.part")
    fresh.write_bytes(objects.made(oid, size))
    fresh.rename(path)
    log.note(Event(time.time(), "created", oid, node, key, size=size))


def keys_on(root: Path) -> list[str]:
    """Keys of a node's objects, ours left out."""
    found: list[str] = []
    for folder, folders, names in os.walk(root):
        if Path(folder) == root and RESERVED in folders:
            folders.remove(RESERVED)
        found += [os.path.relpath(Path(folder) / name, root) for name in names if not name.startswith(".")]
    return sorted(found)


class Strangers:
    """Does one thing at a time to objects that are on the nodes; everything is chosen by its dice."""

    def __init__(self, roots: Mapping[str, Path], log: WriteLog, dice: random.Random) -> None:
        self._roots = dict(roots)
        self._log = log
        self._dice = dice

    def act(self) -> None:
        """Append, mostly; sometimes create or rename; seldom delete."""
        what = self._dice.choices((self.append, self.rename, self.create, self.delete), (40, 2, 3, 1))[0]
        with suppress(FileNotFoundError):  # it was moved away under our hands: nothing was done
            what()

    def _pick(self) -> tuple[str, str, Path] | None:
        node = self._dice.choice(sorted(self._roots))
        keys = [key for key in keys_on(self._roots[node]) if not key.startswith("empty/")]
        if not keys:
            return None
        key = self._dice.choice(keys)
        return node, key, self._roots[node] / key

    def append(self) -> None:
        picked = self._pick()
        if picked is None:
            return
        node, key, path = picked
        # Never O_CREAT: a writer that makes a second object of that name would have made it itself.
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        try:
            number = self._log.next_number()
            os.write(descriptor, objects.token(number))
            stood = False
            with suppress(FileNotFoundError):
                stood = os.path.samestat(path.stat(), os.fstat(descriptor))
            event = Event(time.time(), "append", self._log.oids[key], node, key, token=number, stood=stood)
            self._log.note(event)
        finally:
            os.close(descriptor)

    def rename(self) -> None:
        picked = self._pick()
        if picked is None:
            return
        node, key, path = picked
        to = f"{key.split('~')[0]}~{self._log.next_number()}"
        self._log.note(Event(time.time(), "rename", self._log.oids[key], node, key, to=to))
        path.rename(self._roots[node] / to)

    def create(self) -> None:
        node = self._dice.choice(sorted(self._roots))
        key = f"late/{self._log.next_number():06d}"
        create(self._log, self._roots[node], node, key, self._dice.choice((1, 500, 20_000)))

    def delete(self) -> None:
        picked = self._pick()
        if picked is None:
            return
        node, key, path = picked
        self._log.note(Event(time.time(), "delete", self._log.oids[key], node, key))
        path.unlink()


def door(root: Path) -> Callable[[str], bytes]:
    """Reads a node's objects whole; a miss is a FileNotFoundError."""
    return lambda key: (root / key).read_bytes()


class UnionReader(threading.Thread):
    """Reads objects all the time, on all nodes; what it misses or finds torn is a violation."""

    def __init__(self, doors: Mapping[str, Callable[[str], bytes]], log: WriteLog, dice: random.Random) -> None:
        super().__init__(name="union-reader", daemon=True)
        self._doors = dict(doors)
        self._log = log
        self._dice = dice
        self._over = threading.Event()
        self.reads = 0
        self.violations: list[str] = []

    def run(self) -> None:
        while not self._over.is_set():
            keys = self._log.keys()
            for oid in self._dice.sample(sorted(keys), k=min(40, len(keys))):
                self.look(oid)
            time.sleep(0.005)

    def stop(self) -> None:
        self._over.set()
        self.join(30)

    def look(self, oid: str) -> None:
        """Find one object whole, or say so."""
        for _ in range(LOOKS):
            if self._found(oid):
                self.reads += 1
                return
        # A delete is noted before it is done, and a rename gives it another key that we did not look for.
        if oid not in self._log.gone and not self._found(oid):
            self.violations.append(f"at {time.time():.3f} no node held {oid} under {self._log.keys()[oid]}")

    def _found(self, oid: str) -> bool:
        for key in self._log.keys()[oid]:
            for node, read in self._doors.items():
                try:
                    content = read(key)
                except FileNotFoundError:
                    continue
                seen = objects.read(content, growing=True)
                if seen is None or seen.oid not in {oid, ""} or (seen.oid == "" and not key.startswith("empty/")):
                    self.violations.append(
                        f"at {time.time():.3f} {node}:{key} was torn: {len(content)} bytes, {content[:40]!r}"
                    )
                return True
        return False
