"""Manifests: what a batch published on a target, written there before readers are sent there.

They make two things possible without Redis: to recognise a source that is gone because we moved it, and to rebuild
locations after Redis is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import AwareDatetime, NonNegativeInt, ValidationError

from rebalance_tasks.core.fingerprint import Fingerprint
from rebalance_tasks.core.models import Frozen, Identifier, KeyText
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebalance_tasks.drivers.base import Driver

log = get_logger(__name__)


class ManifestEntry(Frozen):
    """One published object."""

    v: int = 1
    move_id: Identifier
    key: KeyText
    source: Identifier
    target: Identifier
    size: NonNegativeInt
    checksum: str
    published: dict[str, Any]
    source_fingerprint: dict[str, Any]
    at: AwareDatetime

    def published_fingerprint(self) -> Fingerprint:
        """What was published."""
        return Fingerprint.from_json(self.published)

    def copied_fingerprint(self) -> Fingerprint:
        """The version of the source that was copied."""
        return Fingerprint.from_json(self.source_fingerprint)


def entries(target: Driver) -> Iterator[tuple[str, ManifestEntry]]:
    """Yield (manifest name, entry) of all that is on a node; what is not an entry is left out, with a warning."""
    for name, lines in target.read_manifests():
        for line in lines:
            try:
                yield name, ManifestEntry.model_validate_json(line)
            except ValidationError:
                log.warning("manifest.unreadable_line", node=target.node_id, manifest=name)


def find(target: Driver, move_id: str) -> ManifestEntry | None:
    """The entry of one move, if the target carries one."""
    return next((entry for _, entry in entries(target) if entry.move_id == move_id), None)
