"""The survey of a check that tasks carry out: which nodes are awaited, who is at which, and what was found.

Everything carries the check's fencing token (invariant 12), so what a late task brings of an earlier survey is refused, and a
doubled message finds its node done. What was found outlives the check for a while: a node that did not change is not packed again.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from pydantic import Field, NonNegativeInt, TypeAdapter

from rebalance_tasks.core.models import Frozen, RebalancePlan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rebalance_tasks.store.connection import Connection, Value
    from rebalance_tasks.store.keys import FleetKeys

#: A runner that does not renew its claim for so long is taken for dead: three beats.
CLAIM_MS: Final = 15_000
#: Whoever goes on with the check has so long to plan.
CONCLUDE_MS: Final = 120_000
_KEYS: Final = TypeAdapter(tuple[str, ...])
#: Reasons to leave an object alone that pass by themselves.
PASSING: Final = frozenset({"too_young"})


class Finding(Frozen):
    """What was found on one node, or on a part of one.

    Attributes:
        node_id: the node, or the name of the part (`control.surveying.parts`).
        digest: of the listing it follows from, with what was asked of it; empty where another listing may be equal to none.
        error: why it could not be surveyed; everything else is empty then.
        cause: the error's stable word.
        device: names the file system and the host that looked; empty where there is none.
        direct: as in `drivers.base.NodeHealth`; so is shows_access.
        left_out: what is on the node and no object, by reason.
        unlisted: objects that are no rows, by reason; ``unlisted_movable_bytes`` as in `core.inventory.Unlisted`.
        cuts: keys, rising, at even distances in what was listed, at which the node may be cut into ranges (`control.surveying.ranges`).
        others_apart: mark of the file in which a host keeps the hashes of the other keys (`control.surveying.other_keys`); empty: they are in Redis.
    """

    node_id: str
    digest: str = ""
    error: str = ""
    cause: str = ""
    adopted: bool = False
    total_bytes: NonNegativeInt | None = None
    free_bytes: int | None = None
    device: str = ""
    latency_ms: float | None = None
    direct: bool | None = None
    shows_access: bool | None = None
    used_bytes: NonNegativeInt = 0
    objects: NonNegativeInt = 0
    left_out: dict[str, int] = Field(default_factory=dict)
    unlisted: dict[str, int] = Field(default_factory=dict)
    unlisted_movable_bytes: NonNegativeInt = 0
    cuts: tuple[str, ...] = ()
    others_apart: str = ""

    @property
    def lasting(self) -> bool:
        """Whether an equal digest means equal candidates, however much later."""
        return bool(self.digest) and not self.unlisted.keys() & PASSING


class Asked(Frozen):
    """What a check was asked, for whoever goes on with it.

    Attributes:
        force: plan under the threshold as well.
        by: who asked.
        digest: of the configuration it was asked under.
        waits: who asked waits for the nodes, and goes on by himself.
        whole: every object is to be a row, as far as a node's share of rows goes.
    """

    force: bool = False
    by: str = ""
    digest: str = ""
    waits: bool = False
    whole: bool = False


class Found(NamedTuple):
    """The objects of one node.

    Attributes:
        rows: its candidates, packed Arrow columns; empty without any.
        others: hashes of the keys of its other objects, uint64, rising; empty where they are kept apart.
    """

    rows: bytes = b""
    others: bytes = b""


@dataclass(frozen=True, slots=True)
class OpenSurvey:
    """A survey that is under way.

    Attributes:
        token: fencing token of its check.
        asked: what its check was asked.
        begun_ms: when it began; ``moved_ms`` when it last came on.
        awaited: nodes that are not in.
        held: whether its check still holds the lock; without it, nothing can come of it any more.
    """

    token: int
    asked: Asked
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
        self._asked = [keys.survey_sought, keys.survey_met]

    def open(self, token: int, node_ids: Iterable[str], asked: Asked, *, lock_ms: int) -> bool:
        """Begin; False when the check has lost its lock."""
        args: list[Value] = [token, asked.model_dump_json(exclude_defaults=True), lock_ms, *node_ids]
        return bool(self._redis.run("survey_open", [self._keys.check_lock, *self._all], args))

    def asked(self) -> Asked:
        """What the check was asked whose survey is under way; nothing when there is none."""
        raw = self._redis.hget(self._keys.survey, "asked")
        return Asked() if raw is None else Asked.model_validate_json(raw)

    def current(self) -> OpenSurvey | None:
        """The survey under way, if there is one."""
        pipe = self._redis.client.pipeline(transaction=True)
        pipe.hgetall(self._keys.survey)
        pipe.smembers(self._keys.survey_awaited)
        pipe.get(self._keys.check_lock)
        facts, awaited, lock = cast("tuple[dict[bytes, bytes], set[bytes], bytes | None]", tuple(pipe.execute()))
        if not facts:
            return None
        return OpenSurvey(
            token=int(facts[b"token"]),
            asked=Asked.model_validate_json(facts[b"asked"]),
            begun_ms=int(facts[b"begun"]),
            moved_ms=int(facts[b"moved"]),
            awaited=frozenset(name.decode() for name in awaited),
            held=(lock or b"").split(b" ")[0] == facts[b"token"],
        )

    def claim(self, token: int, node_id: str, *, owner: str, lock_ms: int) -> str:
        """Take a node, or go on holding it: ``go``, ``lost`` or ``taken``."""
        keys = [self._keys.check_lock, *self._all[:3]]
        return cast("bytes", self._redis.run("survey_claim", keys, [token, node_id, owner, CLAIM_MS, lock_ms])).decode()

    def report(self, token: int, finding: Finding, found: Found | None, *, lock_ms: int) -> int:
        """Hand in what was found; return how many nodes are awaited still, −1 when this one was not.

        Args:
            token: of the check.
            finding: in numbers.
            found: the objects; None when they are those of the node's last finding.
            lock_ms: for which the check holds its lock from now on.
        """
        args: list[Value] = [token, finding.node_id, finding.model_dump_json(exclude_defaults=True), lock_ms]
        args += ["1", b"", b""] if found is None else ["", found.rows, found.others]
        return int(self._redis.run("survey_report", [self._keys.check_lock, *self._all], args))

    def cut(self, token: int, node_id: str, names: Sequence[str], *, lock_ms: int) -> int:
        """Await the parts of a node instead of the node; return how many are awaited then, −1 when this one was not."""
        keys = [self._keys.check_lock, *self._all]
        return int(self._redis.run("survey_cut", keys, [token, node_id, lock_ms, *names]))

    def conclude(self, token: int, *, lock_ms: int) -> bool:
        """Become the one who goes on with the check, once all nodes are in."""
        keys = [self._keys.check_lock, *self._all[:2]]
        return bool(self._redis.run("survey_conclude", keys, [token, uuid.uuid4().hex, CONCLUDE_MS, lock_ms]))

    def last(self, node_ids: Sequence[str]) -> dict[str, Finding]:
        """What was found last on those of some nodes that were surveyed, in this survey or an earlier one."""
        raw = cast("list[bytes | None]", self._redis.client.hmget(self._keys.survey_findings, list(node_ids)))
        found = zip(node_ids, raw, strict=True)
        return {node_id: Finding.model_validate_json(one) for node_id, one in found if one is not None}

    def findings(self) -> list[Finding]:
        """What was found on all nodes, by node id."""
        raw = self._redis.hgetall(self._keys.survey_findings)
        return [Finding.model_validate_json(raw[node_id]) for node_id in sorted(raw)]

    def rows(self, node_ids: Sequence[str], *, at_once: int = 64) -> Iterator[bytes | None]:
        """Yield the packed candidates of nodes, in order, a few nodes in memory at a time."""
        return self._values(self._keys.survey_rows, node_ids, at_once)

    def others(self, node_ids: Sequence[str], *, at_once: int = 16) -> Iterator[bytes | None]:
        """Yield the hashes of the other objects of nodes, in order, a few nodes in memory at a time."""
        return self._values(self._keys.survey_others, node_ids, at_once)

    def note_cuts(self, token: int, node_id: str, cuts: Sequence[str]) -> None:
        """Note at which keys, rising, a survey cuts a node into ranges; who comes second notes nothing."""
        self._redis.client.hsetnx(self._keys.survey_cuts, f"{token}/{node_id}", json.dumps(list(cuts)))

    def cuts(self, token: int, node_id: str) -> tuple[str, ...]:
        """Where a survey cuts a node; empty when that was not noted."""
        raw = self._redis.hget(self._keys.survey_cuts, f"{token}/{node_id}")
        return () if raw is None else _KEYS.validate_json(raw)

    def unordered(self) -> dict[str, str]:
        """Nodes that were seen not to list in order of keys, and at which URL."""
        return {node_id: url.decode() for node_id, url in self._redis.hgetall(self._keys.survey_unordered).items()}

    def note_order(self, node_id: str, url: str, *, kept: bool) -> None:
        """Note whether a node at a URL was seen to list in order of keys."""
        if kept:
            self._redis.client.hdel(self._keys.survey_unordered, node_id)
        else:
            self._redis.client.hset(self._keys.survey_unordered, node_id, url)

    def ask(self, token: int, names: Sequence[str], sought: bytes, *, lock_ms: int) -> bool:
        """Ask places that are in which of some keys they hold besides their candidates; once a survey, False the second time.

        Args:
            token: of the check.
            names: the questions, which are awaited as nodes are.
            sought: hashes of the keys, uint64.
            lock_ms: as in `report`.
        """
        args: list[Value] = [token, lock_ms, sought, *names]
        keys = [self._keys.check_lock, *self._all[:3], *self._asked]
        return bool(self._redis.run("survey_ask", keys, args))

    def answer(
        self, token: int, name: str, place: str, met: bytes, *, failed: Finding | None = None, lock_ms: int
    ) -> int:
        """Hand in which of the keys lie at a place; return how many are awaited still, −1 when this answer was not.

        Args:
            token: of the check.
            name: of the question; ``place`` is what it is about.
            place: a node, or a part of one.
            met: hashes, uint64.
            failed: why it cannot be told; takes the place of what was found there, so that its node is left out.
            lock_ms: as in `report`.
        """
        finding = "" if failed is None else failed.model_dump_json(exclude_defaults=True)
        args: list[Value] = [token, name, place, lock_ms, finding, met]
        return int(self._redis.run("survey_answer", [self._keys.check_lock, *self._all, self._keys.survey_met], args))

    def sought(self) -> bytes:
        """Hashes of the keys that places are asked for; empty when nothing is asked."""
        return self._redis.get(self._keys.survey_sought) or b""

    def was_asked(self) -> bool:
        """Whether the survey under way has asked its second question."""
        return self._redis.hget(self._keys.survey, "questions") is not None

    def met(self, places: Sequence[str]) -> dict[str, bytes]:
        """What was answered by those of some places that have answered."""
        if not places:
            return {}
        raw = cast("list[bytes | None]", self._redis.client.hmget(self._keys.survey_met, list(places)))
        return {place: one for place, one in zip(places, raw, strict=True) if one is not None}

    def close(self, token: int, *, keep_ms: int) -> None:
        """End the survey; what was found stays for so long, for nodes that do not change until the next one."""
        keys = [*self._all, *self._asked, self._keys.survey_cuts]
        self._redis.run("survey_close", keys, [token, max(1, keep_ms)])

    def note_planned(self, basis: str, plan: RebalancePlan, *, keep_ms: int) -> None:
        """Note which plan was made of what; the moves are with the plan itself."""
        pipe = self._redis.client.pipeline(transaction=True)
        found = {
            "basis": basis,
            "plan": plan.model_copy(update={"moves": ()}).model_dump_json(),
            "moves": len(plan.moves),
        }
        pipe.hset(self._keys.survey_planned, mapping=cast("Any", found))
        pipe.pexpire(self._keys.survey_planned, max(1, keep_ms))
        pipe.execute()

    def planned(self, basis: str) -> tuple[RebalancePlan, int] | None:
        """Return the plan that was last made of this, without its moves, and how many there are."""
        raw = self._redis.hgetall(self._keys.survey_planned)
        if not basis or raw.get("basis") != basis.encode():
            return None
        return RebalancePlan.model_validate_json(raw["plan"]), int(raw["moves"])

    def _values(self, key: str, node_ids: Sequence[str], at_once: int) -> Iterator[bytes | None]:
        for first in range(0, len(node_ids), at_once):
            some = list(node_ids[first : first + at_once])
            yield from cast("list[bytes | None]", self._redis.client.hmget(key, some))
