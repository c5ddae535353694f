"""The form in which things are stored, and the way from an older form to ours.

During an upgrade workers of two releases share one Redis, and what an old release stored outlives it. Hence whatever is
stored says in which form it is (a missing stamp is form 1, which had none everywhere). Reading takes an older form up, one step
at a time, by the functions of `UPGRADES`; a newer one is refused, since guessing at it could lose an object.

The stamp of a job covers all keys below ``job:‹id›`` (its moves, groups, journal, outcomes), that of a plan its moves. A new
form is a new number in `VERSIONS`, a function in `UPGRADES`, and a stored sample in tests/support/stored.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from rebalance_tasks.core.errors import PermanentError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Takes a record of one form to the next; pure, and it leaves what it was given alone.
Upgrade: TypeAlias = "Callable[[Mapping[str, Any]], Mapping[str, Any]]"

#: Name of the stamp in a record.
STAMP: Final = "v"
#: Kind of record -> the form this release writes.
VERSIONS: Final[Mapping[str, int]] = {
    "plan": 3,
    "job": 1,
    "trash": 1,
    "batch": 1,
    "undo": 1,
    "check": 1,
    "snapshot": 1,
}
#: Kind of record -> form -> how to take that form to the next.
UPGRADES: Final[Mapping[str, Mapping[int, Upgrade]]] = {
    **{kind: {} for kind in VERSIONS},
    # Form 2 says in `cannot` why a target is out of reach; form 3 packs the moves as columns (`packed_moves`), the rest is the same.
    "plan": {1: lambda record: {**record, "cannot": []}, 2: dict},
}


class NewerVersion(PermanentError):
    """Something in Redis was written by a newer release, in a form this one does not know."""

    cause = "newer_version"

    def __init__(self, kind: str, found: object, known: int) -> None:
        """Name the kind of record and both versions."""
        super().__init__(
            f"a {kind} record of version {found} is in Redis, this release reads up to version {known}; "
            "upgrade rebalance-tasks here (and restart this process), or let the newer workers end what they began"
        )
        self.kind = kind
        self.found = found
        self.known = known


def require_known(kind: str, version: Any, *, versions: Mapping[str, int] = VERSIONS) -> int:  # noqa: ANN401  whatever is stored
    """Return a stored stamp as a number (``None``: 1). Raises: NewerVersion (also for a stamp that cannot be read)."""
    known = versions[kind]
    if version is None:
        return 1
    try:
        number = int(version)
    except (TypeError, ValueError):
        raise NewerVersion(kind, version, known) from None
    if not 1 <= number <= known:
        raise NewerVersion(kind, number, known)
    return number


def upgraded(
    kind: str,
    record: Mapping[str, Any],
    *,
    versions: Mapping[str, int] = VERSIONS,
    upgrades: Mapping[str, Mapping[int, Upgrade]] = UPGRADES,
) -> dict[str, Any]:
    """Return a stored record in our form, stamped with it.

    Args:
        kind: a key of ``versions``.
        record: as it was stored; it is not changed.
        versions: what is written today.
        upgrades: the steps up to it.

    Raises:
        NewerVersion: a newer release wrote it.
    """
    current = record
    for version in range(require_known(kind, record.get(STAMP), versions=versions), versions[kind]):
        current = upgrades[kind][version](current)
    return {**current, STAMP: versions[kind]}
