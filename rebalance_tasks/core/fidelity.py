"""What travels with an object's bytes, and what a pair of nodes cannot carry.

Each kind of node says what its objects have and what it keeps of what arrives (`Fidelity`). What a move loses is what the source's
objects have and the target does not keep: a plan says it for each of its pairs, and a fleet may refuse it (`must_carry`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Attribute", "Fidelity", "lost", "not_carried"]


class Attribute(StrEnum):
    """One thing that belongs to an object besides its bytes."""

    MTIME = "mtime"
    MODE = "mode"
    OWNER = "owner"
    XATTRS = "xattrs"
    HOLES = "holes"
    #: content type, cache control, disposition, encoding, language, expiry
    HEADERS = "headers"
    USER_METADATA = "user_metadata"
    TAGS = "tags"
    STORAGE_CLASS = "storage_class"


class Fidelity(NamedTuple):
    """What a kind of node knows.

    Attributes:
        has: what its objects may have.
        keeps: what it keeps of an object that comes from elsewhere, so that a later move can give it back.
    """

    has: frozenset[Attribute] = frozenset()
    keeps: frozenset[Attribute] = frozenset()


def lost(source: Fidelity, target: Fidelity) -> tuple[Attribute, ...]:
    """Return what a move from one kind of node to another loses, in the order of `Attribute`."""
    gone = source.has - target.keeps
    return tuple(attribute for attribute in Attribute if attribute in gone)


def not_carried(pairs: Iterable[tuple[str, str]], known: Mapping[str, Fidelity]) -> dict[str, tuple[str, ...]]:
    """Return what each pair of nodes loses, as ``"source > target"`` → attributes; pairs that lose nothing are left out.

    Args:
        pairs: (source, target) node ids; repeated ones are taken once.
        known: node id → what its kind knows; a node that is not in it neither has nor keeps anything.
    """
    nothing = Fidelity()
    found = {
        f"{source} > {target}": tuple(map(str, lost(known.get(source, nothing), known.get(target, nothing))))
        for source, target in sorted(set(pairs))
    }
    return {pair: attributes for pair, attributes in found.items() if attributes}
