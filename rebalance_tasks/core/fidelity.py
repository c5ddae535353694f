"""What travels with an object's bytes, and what a pair of nodes cannot carry.

Each kind of node says what its objects have and what it keeps of what arrives (`Fidelity`). What a move loses is what the source's
objects have and the target does not keep: a plan says it for each of its pairs, and a fleet may refuse it (`must_carry`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

__all__ = ["Attribute", "Fidelity", "lost"]


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
        hides: what of ``has`` cannot be read through its driver, and so never leaves it.
    """

    has: frozenset[Attribute] = frozenset()
    keeps: frozenset[Attribute] = frozenset()
    hides: frozenset[Attribute] = frozenset()


def lost(source: Fidelity, target: Fidelity) -> tuple[Attribute, ...]:
    """Return what a move from one kind of node to another loses, in the order of `Attribute`."""
    gone = source.has - (target.keeps - source.hides)
    return tuple(attribute for attribute in Attribute if attribute in gone)
