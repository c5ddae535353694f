"""The survey of a check, carried out by tasks: each node is listed where it can be reached, and nobody waits for it in a slot.

check ─▶ **begin** ── messages on the nodes' queues ─▶ **survey_nodes** ── findings in Redis ─▶ the last one asks for conclude
conclude ─▶ **ask_again**, where nodes keep hashes apart ─▶ **survey_nodes** ── answers in Redis ─▶ the last one asks for conclude
sweep ─▶ **redrive** ── lost messages, dead runners, nodes that never answer, a lost conclude

Keeps: the check stays a singleton (its lock is renewed by whoever works for it, and every write carries its token), and a node that
cannot be surveyed, or does not answer in time, is left out whole: nothing is planned from half a listing.
"""

from __future__ import annotations

import socket
import time
import uuid
from collections import defaultdict
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from rebalance_tasks.control.inventories import FROM_NODES
from rebalance_tasks.control.measuring import measured
from rebalance_tasks.control.survey import look, most_rows
from rebalance_tasks.control.surveying.memory import SurveyMemory, spill_folder
from rebalance_tasks.control.surveying.other_keys import HashFiles, share_of
from rebalance_tasks.control.surveying.parts import (
    FIRST_PARTS,
    MOST_OBJECTS,
    is_question,
    names_of,
    node_of,
    part_of,
    place_of,
    question_about,
)
from rebalance_tasks.control.surveying.question import Answers
from rebalance_tasks.control.surveying.ranges import cut_now, places_of, range_of, sampled
from rebalance_tasks.core.errors import RebalanceError
from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.core.keeping.candidates import thinned
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.core.placement.hashing import hash_keys
from rebalance_tasks.core.routes import first_served, queues_reaching
from rebalance_tasks.drivers.key_ranges import OutOfOrder
from rebalance_tasks.drivers.node_parts import TooManyObjects
from rebalance_tasks.drivers.registry import validate_roots
from rebalance_tasks.migration.heartbeat import Heart
from rebalance_tasks.store.surveys import Asked, Finding, Found
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.control.survey import Look
    from rebalance_tasks.control.surveying.question import KeysUnmet
    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.drivers.node_parts import Part
    from rebalance_tasks.store.surveys import OpenSurvey

log = get_logger(__name__)

#: A check that is not worked for so long has lost its lock; its plan is refused.
CHECK_LOCK_MS: Final = 600_000
#: Up to so many nodes a check lists itself: messages would take longer.
HERE_NODES: Final = 16
#: Nodes named by one message: at most so many, and fewer where that leaves fewer messages than a queue may have processes.
_BUNDLE: Final = 16
_MESSAGES: Final = 64
#: A task that lists for longer hands the rest of its nodes on.
SLICE_S: Final = 20.0
#: A listing may take as long as the task that makes it.
LONGEST_S: Final = 580.0
#: Nothing was claimed, renewed or handed in for so long: the messages are lost, or nobody serves their queue.
IDLE_MS: Final = 30_000
#: Then nodes that are not in are left out.
LATEST_MS: Final = 600_000
#: Of so many checks one throws away what nobody reads any more of the hosts' memories.
TIDY_EVERY: Final = 16
#: A busy machine answers a small read so much later; in gravity it is a fortieth of one dimension of five.
LATENCY_NOISE_MS: Final = 5.0
_PACKED: Final = pa.ipc.IpcWriteOptions(compression="lz4")
_heart: Final = Heart(longest_s=LONGEST_S)


def by_tasks(context: FleetContext) -> bool:
    """Whether a check of this fleet has its nodes listed by tasks."""
    settings, nodes = context.settings, _looked_at(context)
    if settings.inventory != FROM_NODES or settings.surveys == "here" or not nodes:
        return False
    return settings.surveys == "tasks" or len(nodes) > HERE_NODES or any(node.queue for node in nodes)


def begin(context: FleetContext, token: int, asked: Asked) -> tuple[int, int]:
    """Have every node listed that is not in maintenance.

    Args:
        context: the fleet.
        token: of the check.
        asked: what the check was asked, for whoever goes on with it.

    Returns:
        Nodes, and messages sent.

    Raises:
        ConfigurationError: roots coincide.
    """
    validate_roots(context.settings.nodes)
    nodes = _looked_at(context)
    asked = asked.model_copy(update={"digest": context.settings.digest()})
    names = places_of(context.surveys, token, nodes)
    if not context.surveys.open(token, names, asked, lock_ms=CHECK_LOCK_MS):
        return 0, 0
    return len(nodes), _publish(context, token, names)


def ask_again(context: FleetContext, token: int, unmet: KeysUnmet) -> int:
    """Ask places for the candidates' keys that lie there as well; return how many messages were sent, 0 when that was done before."""
    names = [question_about(place) for place in unmet.places]
    if not context.surveys.ask(token, names, unmet.sought.packed(), lock_ms=CHECK_LOCK_MS):
        return 0
    return _publish(context, token, names)


def survey_nodes(context: FleetContext, token: int, names: Sequence[str]) -> int:
    """Look at some nodes, or parts of nodes, for a check, one after the other, or answer questions about them; return how many were handed in.

    What is left after about 20 s goes on in a message of its own.
    """
    begun, runner, handed_in = time.monotonic(), _Runner(context, token, names), 0
    if token % TIDY_EVERY == 0:
        SurveyMemory.of(context.settings).tidy(now_ns=time.time_ns())
    for at, name in enumerate(names):
        if at and time.monotonic() - begun > SLICE_S:
            _publish(context, token, names[at:])
            break
        left = runner.run(name)
        handed_in += left >= 0
        if left == 0:
            context.messenger.publish_conclude(token)
    return handed_in


def redrive(context: FleetContext) -> int:
    """Drive on the survey under way, if there is one; return how many messages were sent or nodes were given up."""
    survey = context.surveys.current()
    if survey is None:
        return 0
    if not survey.held:
        context.surveys.close(survey.token, keep_ms=keep_ms(context))
        return 0
    if not survey.awaited:
        # Whoever is at it already keeps it: a message too many finds that out.
        context.messenger.publish_conclude(survey.token)
        return 1
    now_ms = context.connection.now_ms()
    if now_ms - survey.begun_ms > LATEST_MS:
        return _give_up(context, survey)
    if now_ms - survey.moved_ms < IDLE_MS:
        return 0
    log.warning("survey.redriven", token=survey.token, awaited=len(survey.awaited))
    return _publish(context, survey.token, sorted(survey.awaited))


def keep_ms(context: FleetContext) -> int:
    """How long what was found is kept after a check."""
    return context.settings.options.full_survey_interval // timedelta(milliseconds=1)


def _looked_at(context: FleetContext) -> list[NodeDescriptor]:
    return [node for node in context.nodes() if node.state is not NodeState.MAINTENANCE]


def _publish(context: FleetContext, token: int, names: Iterable[str]) -> int:
    """Ask for nodes and parts of nodes; of a node that is not configured here nobody is asked."""
    nodes = {node.node_id: node for node in context.nodes()}
    by_queue: defaultdict[str, list[str]] = defaultdict(list)
    served = context.presence.served(now_ms=context.connection.now_ms())
    for name in names:
        if (node := nodes.get(node_of(name))) is not None:
            reaching = queues_reaching(node)
            by_queue[first_served(reaching, served) or reaching[0]].append(name)
    messages = 0
    for queue, some in sorted(by_queue.items()):
        size = max(1, min(_BUNDLE, len(some) // _MESSAGES))
        for first in range(0, len(some), size):
            context.messenger.publish_survey(token, some[first : first + size], queue=queue)
            messages += 1
    return messages


class _Runner:
    """Looks at nodes and parts of nodes for one check, one at a time."""

    def __init__(self, context: FleetContext, token: int, names: Sequence[str]) -> None:
        self._context = context
        self._token = token
        # For all of its nodes at once. A moment that is past makes objects rather too young than too old.
        self._now = context.now()
        self._last = context.surveys.last([place_of(name) for name in names])
        self._answers = Answers(context)
        self._owner = uuid.uuid4().hex
        self._adopted = context.fleet.adopted()
        self._asked = context.surveys.asked()
        self._nodes = {node.node_id: node for node in context.nodes()}

    def run(self, name: str) -> int:
        """Look at a node or a part and hand in what was found; return how many are awaited still, −1 when this one was not."""
        if self._claim(name) != "go":
            return -1
        find = self._answered if is_question(name) else self._looked_at
        with _heart.keeping(partial(self._claim, name)):
            hand_in = find(name)
        return hand_in()

    def _claim(self, name: str) -> str:
        return self._context.surveys.claim(self._token, name, owner=self._owner, lock_ms=CHECK_LOCK_MS)

    def _cut(self, node_id: str, names: Sequence[str]) -> int:
        """Have a node listed in parts instead; nothing of it is in yet."""
        if self._context.surveys.cut(self._token, node_id, names, lock_ms=CHECK_LOCK_MS) > 0:
            log.info("survey.cut", node=node_id, parts=len(names))
            _publish(self._context, self._token, names)
        return -1

    def _answered(self, name: str) -> Callable[[], int]:
        """Find out which of the candidates' keys lie at a place, or why that cannot be told."""
        place = place_of(name)
        node, last, surveys = self._nodes.get(node_of(name)), self._last.get(place), self._context.surveys
        met, failed = b"", None
        if node is None or last is None:
            failed = Finding(node_id=place, error="it is not configured here, or forgotten", cause="unknown_node")
        else:
            try:
                met = self._answers.about(place, last.others_apart, lambda: self._list(place, node).found)
            except RebalanceError as exc:
                failed = _left_out(place, exc)
        return partial(surveys.answer, self._token, name, place, met, failed=failed, lock_ms=CHECK_LOCK_MS)

    def _looked_at(self, name: str) -> Callable[[], int]:
        try:
            finding, found = self._look(name, limit=MOST_OBJECTS if part_of(name) is None else None)
        except TooManyObjects as exc:
            if names := self._parts(self._nodes[name], flat=exc.flat):
                return partial(self._cut, name, names)
            finding, found = self._look(name)
        return partial(self._context.surveys.report, self._token, finding, found, lock_ms=CHECK_LOCK_MS)

    def _parts(self, node: NodeDescriptor, *, flat: bool) -> list[str]:
        """Names of the parts that a node is listed in instead; none where it has to be listed whole."""
        if not flat:
            return names_of(node.node_id, FIRST_PARTS)
        try:
            driver = self._context.driver(node.node_id)
            return cut_now(self._context.surveys, self._token, driver, node, FIRST_PARTS)
        except RebalanceError:
            return []  # listing it says what is wrong

    def _list(self, place: str, node: NodeDescriptor, *, limit: int | None = None) -> Look:
        within = range_of(self._context.surveys, self._token, place)
        return look(self._context, node, adopted=self._adopted, now=self._now, name=place, most=limit, within=within)

    def _look(self, name: str, *, limit: int | None = None) -> tuple[Finding, Found | None]:
        """Return what was found, and the objects unless they are those of the last finding."""
        node, part = self._nodes.get(node_of(name)), part_of(name)
        if node is None:
            return Finding(node_id=name, error="it is not configured here", cause="unknown_node"), Found()
        most = self._most(part)
        try:
            seen = self._list(name, node, limit=limit)
            digest = self._digest(seen, most)
            last = self._last.get(name)
            if last is not None and last.digest == digest and last.lasting:
                return last.model_copy(update=_health(seen, last)), None
            return self._found(name, node, seen, digest, most)
        except RebalanceError as exc:
            if isinstance(exc.__cause__, OutOfOrder):
                self._context.surveys.note_order(node.node_id, node.url, kept=False)
            return _left_out(name, exc), Found()

    def _found(self, name: str, node: NodeDescriptor, seen: Look, digest: str, most: int) -> tuple[Finding, Found]:
        listed = seen.found
        whole = measured(self._context, Inventory.from_listings({node.node_id: listed.columns}))
        if self._asked.whole and len(whole) <= most:
            kept, rest = whole, np.empty(0, np.int64)
        else:
            kept, rest = thinned(node, whole, most=most, options=self._context.settings.options, now=self._now)
        others, apart = _hashes(whole, rest), ""
        if len(others) > self._hashes_in_redis(part_of(name)):
            apart, others = HashFiles(spill_folder(self._context.settings)).keep(name, others), others[:0]
        finding = Finding(
            node_id=name,
            digest=digest,
            used_bytes=int(whole.size_bytes.sum()),
            objects=len(whole),
            left_out=dict(listed.left_out),
            unlisted=dict(kept.unlisted.objects),
            unlisted_movable_bytes=kept.unlisted.movable_bytes,
            cuts=sampled(self._context.surveys, self._context.driver(node.node_id), node, name, listed.keys),
            others_apart=apart,
            **_health(seen),
        )
        return finding, Found(_packed(kept.to_arrow()) if len(kept) else b"", others.tobytes())

    def _most(self, part: Part | None) -> int:
        """Rows to keep; the parts of a node share its own."""
        whole = most_rows(len(self._nodes))
        return whole if part is None else max(1, whole // part.count)

    def _hashes_in_redis(self, part: Part | None) -> int:
        return share_of(len(self._nodes), 1 if part is None else part.count)

    def _digest(self, seen: Look, most: int) -> str:
        """Of all that a node's candidates follow from; empty where that may change without showing."""
        listing = seen.found.digest()
        steady = self._context.settings.gravity.follows_listing
        asked = f"{self._asked.digest}-whole" if self._asked.whole else self._asked.digest
        return f"{listing}-{asked}-{most}" if listing and steady and self._asked.digest else ""


def _like(before: float | None, now: float | None) -> bool:
    """Whether two measured latencies are one and the same but for noise, which must not change a plan."""
    return before is not None and now is not None and abs(now - before) <= max(LATENCY_NOISE_MS, before / 2)


def _health(seen: Look, last: Finding | None = None) -> dict[str, Any]:
    """What is to be known of a node besides its objects, as fields of a finding; noise leaves the last one's latency."""
    latency_ms = seen.latency_ms
    if last is not None and _like(last.latency_ms, latency_ms):
        latency_ms = last.latency_ms
    return {
        "adopted": seen.health.adopted,
        "total_bytes": seen.health.total_bytes,
        "free_bytes": seen.health.free_bytes,
        "device": f"{socket.gethostname()}:{seen.health.device}" if seen.health.device else "",
        "latency_ms": latency_ms,
        "direct": seen.health.direct,
        "shows_access": seen.health.shows_access,
    }


def _packed(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=_PACKED) as stream:
        stream.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def _hashes(whole: Inventory, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hashes of some keys, rising, so that looking them up goes through memory in order."""
    return np.sort(hash_keys(whole.keys.take(pa.array(rows))))


def _left_out(name: str, exc: RebalanceError) -> Finding:
    log.warning("survey.node_left_out", node=name, error=str(exc))
    return Finding(node_id=name, error=str(exc), cause=exc.cause)


def leave_out(context: FleetContext, token: int, name: str, why: str) -> int:
    """Leave out the node of which a place, or the answer to a question, did not come in; return how many are awaited still."""
    place, surveys = place_of(name), context.surveys
    finding = Finding(node_id=place, error=why, cause="retryable")
    if is_question(name):
        return surveys.answer(token, name, place, b"", failed=finding, lock_ms=CHECK_LOCK_MS)
    return surveys.report(token, finding, Found(), lock_ms=CHECK_LOCK_MS)


def _give_up(context: FleetContext, survey: OpenSurvey) -> int:
    """Leave out the nodes that did not answer in time."""
    minutes = LATEST_MS // 60_000
    for name in sorted(survey.awaited):
        error = (
            f"{place_of(name)}: nobody surveyed it within {minutes} minutes; does a worker serve its queue (`rebalance doctor`)? "
            "A store with too many objects to list wants an inventory file ([fleet] inventory)"
        )
        if leave_out(context, survey.token, name, error) == 0:
            context.messenger.publish_conclude(survey.token)
    return len(survey.awaited)
