"""A host's catalogue in a SQLite file, as a provider of the fleet's locations (docs/how-to/host-catalogue.md).

An application that keeps its own table of where each object is offers it to the fleet like this: one table, one conditional
UPDATE. The package that holds this module names `open_catalogue` as an entry point of the group ``rebalance_tasks.providers``.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rebalance_tasks import Flip, NodeDescriptor

#: Whoever writes waits for others at most so long; then the job is paused, and tries again.
TIMEOUT_S = 10.0
SCHEMA = "CREATE TABLE IF NOT EXISTS objects (key TEXT PRIMARY KEY, node TEXT, fence INTEGER NOT NULL DEFAULT 0)"
CHANGE = "UPDATE objects SET node = :target, fence = :fence WHERE key = :key AND node IS :source AND fence <= :fence"
ADD = "INSERT INTO objects (key) VALUES (:key) ON CONFLICT DO NOTHING"


class SqliteCatalogue:
    """Where objects are; a row without a node is an object that is gone, whose fence is remembered."""

    def __init__(self, path: str) -> None:
        """Open the file, or make it."""
        self._path = path
        self._of_thread = threading.local()
        with self._transaction() as db:
            db.execute(SCHEMA)

    def locate(self, keys: Sequence[str]) -> list[str | None]:
        """Return the node of each key."""
        with self._transaction() as db:
            return [_node(db, key) for key in keys]

    def flip(self, flips: Sequence[Flip]) -> list[str | None]:
        """Change what is where it is believed to be, all in one transaction; return where each key is now."""
        with self._transaction(write=True) as db:
            db.executemany(ADD, [flip._asdict() for flip in flips if flip.source is None])
            db.executemany(CHANGE, [flip._asdict() for flip in flips])
            return [_node(db, flip.key) for flip in flips]

    def entries(self) -> Iterator[tuple[str, str]]:
        """Yield all of it."""
        with self._transaction() as db:
            yield from db.execute("SELECT key, node FROM objects WHERE node IS NOT NULL").fetchall()

    @contextmanager
    def _transaction(self, *, write: bool = False) -> Iterator[sqlite3.Connection]:
        """A transaction on this thread's connection; durable when it ends."""
        db: sqlite3.Connection | None = getattr(self._of_thread, "db", None)
        if db is None:
            db = self._of_thread.db = sqlite3.connect(self._path, timeout=TIMEOUT_S, isolation_level=None)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        try:
            yield db
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")


def _node(db: sqlite3.Connection, key: str) -> str | None:
    row = db.execute("SELECT node FROM objects WHERE key = ?", (key,)).fetchone()
    return None if row is None else row[0]


def open_catalogue(nodes: Sequence[NodeDescriptor]) -> SqliteCatalogue:
    """Open the catalogue that ``ACME_CATALOGUE`` names; what the entry point names, called once per process."""
    del nodes  # it knows them by their ids
    return SqliteCatalogue(os.environ["ACME_CATALOGUE"])
