"""The survey of a check that tasks carry out: which nodes are awaited, who is at which, and what was found.

Everything carries the check's fencing token (invariant 12), so what a late task brings of an earlier survey is refused, and a
doubled message finds its node done. Kept from the first message until the check has decided.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from pydantic import Field, NonNegativeInt

from rebalance_tasks.core.models import Frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rebalance_tasks.store.connection import Connection, Value
    from rebalance_tasks.store.keys import FleetKeys

#: A runner that does not renew its claim for so long is taken for dead: three beats.
CLAIM_MS: Final = 15_000
#: Whoever goes on with the check has so long to plan.
CONCLUDE_MS: Final = 120_000


class Finding(Frozen):
    """What was found on one node.

    Attributes:
        error: why it could not be surveyed; everything else is empty then.
        cause: the error's stable word.
        device: names the file system and the host that looked; empty where there is none.
        left_out: what is on the node and no object, by reason.
        unlisted: objects that are no rows, by reason; ``unlisted_movable_bytes`` as in `core.inventory.Unlisted`.
    """

    node_id: str
    error: str = ""
    cause: str = ""
    adopted: bool = False
    total_bytes: NonNegativeInt | None = None
    free_bytes: int | None = None
    device: str = ""
    latency_ms: float | None = None
    used_bytes: NonNegativeInt = 0
    objects: NonNegativeInt = 0
    left_out: dict[str, int] = Field(default_factory=dict)
    unlisted: dict[str, int] = Field(default_factory=dict)
    unlisted_movable_bytes: NonNegativeInt = 0


@dataclass(frozen=True, slots=True)
class OpenSurvey:
    """A survey that is under way.

    Attributes:
        token: fencing token of its check.
        force: whether the check plans under the threshold as well.
        by: who asked for it.
        begun_ms: when it began; ``moved_ms`` when it last came on.
        awaited: nodes that are not in.
        held: whether its check still holds the lock; without it, nothing can come of it any more.
    """

    token: int
    force: bool
    by: str
    begun_ms: int
    moved_ms: int
    awaited: frozenset[str]
    held: bool


class SurveyStore:
    """Surveys of one fleet; there is at most one at a time, that of the one check."""

    def __init__(self, connection: Connection, keys: FleetKeys) -> None:
        """Bind to a fleet's keys."""
        self._redis = connection
        self._keys = keys
        found = (keys.survey_findings, keys.survey_rows, keys.survey_others)
        self._all = [keys.survey, keys.survey_awaited, keys.survey_claims, *found]

    def open(self, token: int, node_ids: Iterable[str], *, force: bool, by: str, lock_ms: int) -> bool:
        """Begin; False when the check has lost its lock."""
        asked = json.dumps({"force": force, "by": by})
        return bool(
            self._redis.run("survey_open", [self._keys.check_lock, *self._all], [token, asked, lock_ms, *node_ids])
        )

    def current(self) -> OpenSurvey | None:
        """The survey under way, if there is one."""
        pipe = self._redis.client.pipeline(transaction=True)
        pipe.hgetall(self._keys.survey)
        pipe.smembers(self._keys.survey_awaited)
        pipe.get(self._keys.check_lock)
        facts, awaited, lock = cast("tuple[dict[bytes, bytes], set[bytes], bytes | None]", tuple(pipe.execute()))
        if not facts:
            return None
        asked = json.loads(facts[b"asked"])
        return OpenSurvey(
            token=int(facts[b"token"]),
            force=bool(asked["force"]),
            by=str(asked["by"]),
            begun_ms=int(facts[b"begun"]),
            moved_ms=int(facts[b"moved"]),
            awaited=frozenset(name.decode() for name in awaited),
            held=(lock or b"").split(b" ")[0] == facts[b"token"],
        )

    def claim(self, token: int, node_id: str, *, owner: str, lock_ms: int) -> str:
        """Take a node, or go on holding it: ``go``, ``lost`` or ``taken``."""
        keys = [self._keys.check_lock, *self._all[:3]]
        return cast("bytes", self._redis.run("survey_claim", keys, [token, node_id, owner, CLAIM_MS, lock_ms])).decode()

    def report(self, token: int, finding: Finding, *, rows: bytes = b"", others: bytes = b"", lock_ms: int) -> int:
        """Hand in what was found; return how many nodes are awaited still, −1 when this one was not."""
        args: list[Value] = [
            token,
            finding.node_id,
            finding.model_dump_json(exclude_defaults=True),
            rows,
            others,
            lock_ms,
        ]
        return int(self._redis.run("survey_report", [self._keys.check_lock, *self._all], args))

    def conclude(self, token: int, *, lock_ms: int) -> bool:
        """Become the one who goes on with the check, once all nodes are in."""
        keys = [self._keys.check_lock, *self._all[:2]]
        return bool(self._redis.run("survey_conclude", keys, [token, uuid.uuid4().hex, CONCLUDE_MS, lock_ms]))

    def findings(self) -> list[Finding]:
        """What was found on all nodes, by node id."""
        raw = self._redis.hgetall(self._keys.survey_findings)
        return [Finding.model_validate_json(raw[node_id]) for node_id in sorted(raw)]

    def rows(self, node_ids: Sequence[str], *, at_once: int = 64) -> Iterator[bytes | None]:
        """Yield the packed candidates of nodes, in order, a few nodes in memory at a time."""
        return self._values(self._keys.survey_rows, node_ids, at_once)

    def others(self, node_ids: Sequence[str], *, at_once: int = 64) -> Iterator[bytes | None]:
        """Yield the hashes of the other objects of nodes, in order, a few nodes in memory at a time."""
        return self._values(self._keys.survey_others, node_ids, at_once)

    def close(self, token: int) -> None:
        """Forget the survey."""
        self._redis.run("survey_close", self._all, [token])

    def _values(self, key: str, node_ids: Sequence[str], at_once: int) -> Iterator[bytes | None]:
        for first in range(0, len(node_ids), at_once):
            some = list(node_ids[first : first + at_once])
            yield from cast("list[bytes | None]", self._redis.client.hmget(key, some))
