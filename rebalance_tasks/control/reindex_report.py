"""What a reindex reads from the nodes, and what it says of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.drivers.base import Driver, Listing

#: Keys named in a report; all are counted, and logged.
NAMED: Final = 100


@dataclass(slots=True)
class ReindexReport:
    """What a reindex found and wrote; what was there already is not counted again.

    Attributes:
        nodes: those that were read.
        missing: node → why it could not be read; what lies there is not indexed.
        objects: objects found, with their ``bytes``.
        manifest_entries: published objects that the manifests list.
        locations: overrides or catalogue entries written; where the catalogue is the host's, those put right.
        catalogue_lacks: objects that the host's catalogue does not have; left alone.
        forwardings: forwardings written.
        frees: sources noted as still to be freed, which cleanup does.
        trash: freed sources put on record again, which cleanup purges when their grace is over.
        staged: half-made copies of lost jobs that were discarded.
        ambiguous: keys on several nodes that nothing explains; left alone, the first ones by name.
        unexplained_trash: trash of which no manifest tells what it was, or whose object stands nowhere; left alone.
    """

    nodes: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    objects: int = 0
    bytes: int = 0
    manifest_entries: int = 0
    locations: int = 0
    catalogue_lacks: int = 0
    forwardings: int = 0
    frees: int = 0
    trash: int = 0
    staged: int = 0
    ambiguous: int = 0
    ambiguous_keys: list[str] = field(default_factory=list)
    unexplained_trash: int = 0
    unexplained_trash_names: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every node could be read."""
        return not self.missing

    def add_ambiguous(self, key: str) -> None:
        """Count a key on several nodes that nothing explains."""
        self.ambiguous += 1
        if len(self.ambiguous_keys) < NAMED:
            self.ambiguous_keys.append(key)

    def add_unexplained(self, name: str) -> None:
        """Count trash ("node:move id") that nothing explains."""
        self.unexplained_trash += 1
        if len(self.unexplained_trash_names) < NAMED:
            self.unexplained_trash_names.append(name)


@dataclass(frozen=True, slots=True)
class Published:
    """A manifest's word on an object that stands where it says."""

    at_ms: int
    move_id: str
    source: str
    target: str
    copied: Fingerprint
    #: to the nanosecond what was published: nobody wrote to it since
    unchanged: bool


@dataclass(frozen=True, slots=True)
class ReadNode:
    """One node as it was read."""

    driver: Driver
    listing: Listing
    adopted: bool
