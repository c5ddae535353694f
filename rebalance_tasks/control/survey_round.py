"""The survey of a check, carried out by tasks: each node is listed where it can be reached, and nobody waits for it in a slot.

check ─▶ **begin** ── messages on the nodes' queues ─▶ **survey_nodes** ── findings in Redis ─▶ the last one asks for conclude
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
from rebalance_tasks.control.parts import FIRST_PARTS, MOST_OBJECTS, joined, names_of, node_of, part_of, parts_for
from rebalance_tasks.control.survey import look, most_rows
from rebalance_tasks.control.survey_memory import SurveyMemory
from rebalance_tasks.core.candidates import thinned
from rebalance_tasks.core.errors import RebalanceError
from rebalance_tasks.core.hashing import hash_keys
from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.core.routes import first_served, queues_reaching
from rebalance_tasks.drivers.node_parts import TooManyObjects
from rebalance_tasks.drivers.registry import validate_roots
from rebalance_tasks.migration.heartbeat import Heart
from rebalance_tasks.store.surveys import Asked, Finding, Found
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.control.survey import Look
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


def begin(
    context: FleetContext, token: int, *, force: bool = False, by: str = "", waits: bool = False
) -> tuple[int, int]:
    """Have every node listed that is not in maintenance.

    Args:
        context: the fleet.
        token: of the check.
        force: what the check was asked; it is asked again when it goes on.
        by: who asked.
        waits: who asked goes on by himself.

    Returns:
        Nodes, and messages sent.

    Raises:
        ConfigurationError: roots coincide.
    """
    validate_roots(context.settings.nodes)
    nodes = _looked_at(context)
    asked = Asked(force=force, by=by, digest=context.settings.digest(), waits=waits)
    found = context.surveys.findings()
    cut = {node_of(finding.node_id) for finding in found if part_of(finding.node_id) is not None}
    sizes = {finding.node_id: finding.objects for finding in joined(found)}
    names = [
        name
        for node in nodes
        for name in names_of(node.node_id, _parts_of(node, sizes.get(node.node_id, 0), cut=node.node_id in cut))
    ]
    if not context.surveys.open(token, names, asked, lock_ms=CHECK_LOCK_MS):
        return 0, 0
    return len(nodes), _publish(context, token, names)


def survey_nodes(context: FleetContext, token: int, names: Sequence[str]) -> int:
    """Look at some nodes, or parts of nodes, for a check, one after the other; return how many were handed in.

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


def _parts_of(node: NodeDescriptor, objects: int, *, cut: bool) -> int:
    """Return into how many parts a node is cut from the start.

    Whether parts help is seen while it is listed whole; only of a disk it is known that each of them reads less.
    """
    return parts_for(objects) if cut or node.url.startswith(("/", "file:")) else 1


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
        self._last = context.surveys.last(names)
        self._owner = uuid.uuid4().hex
        self._adopted = context.fleet.adopted()
        self._asked = context.surveys.asked()
        self._nodes = {node.node_id: node for node in context.nodes()}

    def run(self, name: str) -> int:
        """Look at a node or a part and hand in what was found; return how many are awaited still, −1 when this one was not."""
        if self._claim(name) != "go":
            return -1
        try:
            with _heart.keeping(partial(self._claim, name)):
                finding, found = self._look(name)
        except TooManyObjects:
            return self._cut(name)
        return self._context.surveys.report(self._token, finding, found, lock_ms=CHECK_LOCK_MS)

    def _claim(self, name: str) -> str:
        return self._context.surveys.claim(self._token, name, owner=self._owner, lock_ms=CHECK_LOCK_MS)

    def _cut(self, node_id: str) -> int:
        """Have a node listed in parts instead; nothing of it is in yet."""
        names = names_of(node_id, FIRST_PARTS)
        if self._context.surveys.cut(self._token, node_id, names, lock_ms=CHECK_LOCK_MS) > 0:
            log.info("survey.cut", node=node_id, parts=len(names))
            _publish(self._context, self._token, names)
        return -1

    def _look(self, name: str) -> tuple[Finding, Found | None]:
        """Return what was found, and the objects unless they are those of the last finding."""
        node, part = self._nodes.get(node_of(name)), part_of(name)
        if node is None:
            return Finding(node_id=name, error="it is not configured here", cause="unknown_node"), Found()
        most = self._most(part)
        try:
            limit = MOST_OBJECTS if part is None else None
            seen = look(self._context, node, adopted=self._adopted, now=self._now, name=name, most=limit)
            digest = self._digest(seen, most)
            last = self._last.get(name)
            if last is not None and last.digest == digest and last.lasting:
                return last.model_copy(update=_health(seen, last)), None
            return self._found(name, node, seen, digest, most)
        except RebalanceError as exc:
            log.warning("survey.node_left_out", node=name, error=str(exc))
            return Finding(node_id=name, error=str(exc), cause=exc.cause), Found()

    def _found(self, name: str, node: NodeDescriptor, seen: Look, digest: str, most: int) -> tuple[Finding, Found]:
        listed = seen.found
        columns = (listed.keys, listed.size_bytes, listed.mtime_ns)
        whole = measured(self._context, Inventory.from_listings({node.node_id: columns}))
        kept, rest = thinned(node, whole, most=most, options=self._context.settings.options, now=self._now)
        finding = Finding(
            node_id=name,
            digest=digest,
            used_bytes=int(whole.size_bytes.sum()),
            objects=len(whole),
            left_out=dict(listed.left_out),
            unlisted=dict(kept.unlisted.objects),
            unlisted_movable_bytes=kept.unlisted.movable_bytes,
            **_health(seen),
        )
        return finding, Found(_packed(kept.to_arrow()) if len(kept) else b"", _hashes(whole, rest))

    def _most(self, part: Part | None) -> int:
        """Rows to keep; the parts of a node share its own."""
        whole = most_rows(len(self._nodes))
        return whole if part is None else max(1, whole // part.count)

    def _digest(self, seen: Look, most: int) -> str:
        """Of all that a node's candidates follow from; empty where that may change without showing."""
        listing = seen.found.digest()
        steady = self._context.settings.gravity.follows_listing
        return f"{listing}-{self._asked.digest}-{most}" if listing and steady and self._asked.digest else ""


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
    }


def _packed(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=_PACKED) as stream:
        stream.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def _hashes(whole: Inventory, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> bytes:
    """Hashes of some keys, rising, so that looking them up goes through memory in order."""
    if not len(rows):
        return b""
    return np.sort(hash_keys(whole.keys.take(pa.array(rows)))).tobytes()


def _give_up(context: FleetContext, survey: OpenSurvey) -> int:
    """Leave out the nodes that did not answer in time."""
    minutes = LATEST_MS // 60_000
    for name in sorted(survey.awaited):
        error = (
            f"{name}: nobody surveyed it within {minutes} minutes; does a worker serve its queue (`rebalance doctor`)? "
            "A store with too many objects to list wants an inventory file ([fleet] inventory)"
        )
        finding = Finding(node_id=name, error=error, cause="retryable")
        if context.surveys.report(survey.token, finding, Found(), lock_ms=CHECK_LOCK_MS) == 0:
            context.messenger.publish_conclude(survey.token)
    return len(survey.awaited)
