"""The rules that a move keeps or breaks by itself, asked of all moves of a plan at once.

What depends on nodes alone is asked once for each pair of them; the rest is compared as columns. Imports nothing from the
planner or `imbalance`, so that a mistake has to be made twice to pass.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rebalance_tasks.core.errors import PlanInvariantError
from rebalance_tasks.core.inventory import UNKNOWN_TIME
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.core.verifying.case import Case
from rebalance_tasks.core.verifying.gravity import composed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import timedelta
    from decimal import Decimal

    from numpy.typing import NDArray

    from rebalance_tasks.core.inventory import Coded
    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.core.move_columns import MoveColumns

    Mask: TypeAlias = NDArray[np.bool_]
    #: A rule in a sentence: the same for all moves, or made for one at its place in the plan.
    Sentence: TypeAlias = str | Callable[[int], str]

#: Difference allowed between two ways of computing one gravity.
_TOLERANCE: Final = 1e-9

T = TypeVar("T")
S = TypeVar("S", bound=np.generic)


class Broken:
    """Which moves break a rule; of several that one breaks the first that was noted counts.

    Attributes:
        codes: int32 (n,), index into ``words``; −1 where a move breaks none.
        words: stable words, under which refusals are counted.
    """

    def __init__(self, moves: MoveColumns) -> None:
        self.codes = np.full(len(moves), -1, np.int32)
        self.words: list[str] = []
        self._sentences: list[Sentence] = []
        self._moves = moves

    def note(self, mask: Mask, sentence: Sentence, word: str = "invalid") -> None:
        """Note a rule for the moves of a mask, bool (n,)."""
        first = mask & (self.codes < 0)
        if first.any():
            self.codes[first] = len(self.words)
            self.words.append(word)
            self._sentences.append(sentence)

    def error(self, at: int) -> PlanInvariantError:
        """Return what is to be said of a move that breaks a rule."""
        code = int(self.codes[at])
        sentence = self._sentences[code]
        moves = self._moves
        rule = sentence if isinstance(sentence, str) else sentence(at)
        source, target = (column.values[column.codes[at]] for column in (moves.source, moves.target))
        return PlanInvariantError(
            f"move of {moves.key(at)!a} from {source!r} to {target!r}: {rule}", word=self.words[code]
        )

    def require_none(self) -> None:
        """Refuse the first move that breaks a rule. Raises: PlanInvariantError."""
        if (self.codes >= 0).any():
            raise self.error(int(np.argmax(self.codes >= 0)))


@dataclass(eq=False)
class MoveRules(Case):
    """The moves of one plan under examination; each method asks one family of rules of all of them.

    Attributes:
        moment_ns: when ages are measured; without it nothing is too young.
        prices: the price matrix, of which an object's gravity may follow.
        broken: what was found.
        rows: int64 (n,), row of each move's object in the inventory; −1 where it has none of its own.
    """

    moment_ns: int | None = None
    prices: Mapping[tuple[str, str], Decimal] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the moved objects."""
        self.broken = Broken(self.moves)
        self.rows, self._times = self._find_rows()

    def each(self) -> None:
        """Ask every rule but for being moved once."""
        self.ends()
        self.objects()
        self.protections()
        self.ages()
        self.requirements()
        self.patterns()

    def ends(self) -> None:
        """Both nodes exist, differ, share a pool and a way from one to the other, and may give and take."""
        pairs, place = self.moves.pairs()
        for number, pair in enumerate(pairs):
            if (found := self._pair(*pair)) is not None:
                self.broken.note(place == number, *found)

    def _pair(self, source_id: str, target_id: str) -> tuple[str, str] | None:
        """Return the rule that a pair of nodes breaks, and its word."""
        source, target = self.nodes.get(source_id), self.nodes.get(target_id)
        if source is None or target is None:
            return f"node {source_id if source is None else target_id!r} is unknown", "unknown_node"
        if source_id == target_id:
            return "source and target are the same node", "invalid"
        if source.pool != target.pool:
            return f"pools differ ({source.pool!r}, {target.pool!r})", "invalid"
        reaching = [set(node.queue.split(",")) for node in (source, target) if node.queue]
        if reaching and not target.remote_url and not set.intersection(*reaching):
            return f"no host reaches both nodes (queues {source.queue!r}, {target.queue!r})", "unreachable"
        for node, name, states, act in (
            (source, "source", {NodeState.ACTIVE, NodeState.DRAINING}, "give"),
            (target, "target", {NodeState.ACTIVE}, "take"),
        ):
            if node.state not in states or not node.capacity_bytes:
                rule = f"the {name} is {node.state} with capacity {node.capacity_bytes} and does not {act}"
                return rule, "node_state"
        return None

    def objects(self) -> None:
        """The object exists once, on the source, with this size."""
        moves, note, names = self.moves, self.broken.note, self.inventory.node_ids
        note(self._times == 0, "the object is not in the inventory", "source_gone")
        note(self._times > 1, "the key is ambiguous: it is on more than one node", "ambiguous")
        place = {name: number for number, name in enumerate(names)}
        expected = np.array([place.get(name, -1) for name in moves.source.values], np.int32)[moves.source.codes]
        holder = self._of(self.inventory.node_index, -1)
        note(
            holder != expected,
            lambda at: f"the source does not hold the object, {names[holder[at]]!r} does",
            "source_gone",
        )
        size = self._of(self.inventory.size_bytes, 0)
        note(
            size != moves.size_bytes,
            lambda at: f"size is {moves.size_bytes[at]}, the inventory says {size[at]}",
            "source_changed",
        )

    def protections(self) -> None:
        """Nothing protected, pinned or too small moves; the stated gravity is the inventory's, and hides nothing that its measures say."""
        moves, inventory, options, note = self.moves, self.inventory, self.options, self.broken.note
        gravity = moves.gravity if inventory.gravity is None else self._of(inventory.gravity, 0.0)
        note(gravity != moves.gravity, lambda at: f"gravity is {moves.gravity[at]}, the inventory says {gravity[at]}")
        most = options.gravity_protection_threshold
        note(gravity >= most, lambda at: f"the object is protected: gravity {gravity[at]} ≥ {most}", "protected")
        if (own := composed(self.rows, inventory, self.nodes, options, self.prices)) is not None:
            hidden = (own >= most) & (np.abs(own - gravity) > _TOLERANCE)
            note(
                hidden, lambda at: f"the object is protected: its measures come to {own[at]:.4f} ≥ {most}", "protected"
            )
        if inventory.pinned is not None:
            note(self._of(inventory.pinned, False), "the object is pinned", "pinned")
        if not self.plan.undo_of:
            least = options.min_object_size
            leaves = np.array([self._drains(name) for name in moves.source.values], np.bool_)[moves.source.codes]
            note(
                (moves.size_bytes < least) & ~leaves,
                lambda at: f"the object has {moves.size_bytes[at]} bytes, fewer than min_object_size {least}",
                "too_small",
            )

    def ages(self) -> None:
        """Nothing too young or cooling down moves; an undo moves back what has just been moved."""
        inventory, options = self.inventory, self.options
        self._age(inventory.mtime_ns, options.min_object_age, "the object is younger than min_object_age", "too_young")
        if not self.plan.undo_of:
            rule = "the object was moved within object_cooldown"
            self._age(inventory.last_moved_ns, options.object_cooldown, rule, "cooldown")

    def _age(self, column: NDArray[np.int64] | None, least: timedelta, rule: str, word: str) -> None:
        if column is None or self.moment_ns is None or not least:
            return
        least_ns = (least.days * 86_400 + least.seconds) * 10**9 + least.microseconds * 1000
        times = self._of(column, UNKNOWN_TIME)
        self.broken.note((times != UNKNOWN_TIME) & (times > self.moment_ns - least_ns), rule, word)

    def requirements(self) -> None:
        """The target offers the storage class, lies in a required region and carries the tags."""
        self._require(self.inventory.required_storage_class, _lacks_class)
        self._require(self.inventory.required_regions, _lacks_region)
        self._require(self.inventory.required_tags, _lacks_tag)

    def _require(self, column: Coded[T] | None, lacks: Callable[[NodeDescriptor, T], str]) -> None:
        """Ask of each target, and each value that objects on their way there need, what it lacks."""
        if column is None:
            return
        wanted = self._of(column.codes, -1)
        numbers = self.moves.target.codes.astype(np.int64) * len(column.values) + wanted
        for number in np.unique(numbers[wanted >= 0]).tolist():
            place, value = divmod(number, len(column.values))
            target = self.nodes.get(self.moves.target.values[place])
            if target is not None and (rule := lacks(target, column.values[value])):
                self.broken.note((wanted >= 0) & (numbers == number), rule, "requirements")

    def patterns(self) -> None:
        """The patterns of both nodes know the key."""
        for column in (self.moves.source, self.moves.target):
            for code, name in enumerate(column.values):
                node = self.nodes.get(name)
                if node is None or not (node.include or node.exclude):
                    continue
                rows = np.flatnonzero(column.codes == code)
                mask = np.zeros(len(self.moves), np.bool_)
                mask[rows] = [not _knows(node, key) for key in self.moves.take(rows).keys.to_pylist()]
                self.broken.note(mask, f"node {name!r} excludes this key", "excluded")

    def replicas_apart(self) -> None:
        """No target's host holds, before or by another move, an object of the same replica group; moves that break a rule make none."""
        groups = self.inventory.replica_group
        if groups is None:
            return
        moved = self._of(groups.codes, -1)
        if not (moved >= 0).any():
            return
        holding: dict[tuple[int, str], set[int]] = defaultdict(set)
        mask = pc.is_in(pa.array(groups.codes), value_set=pa.array(np.unique(moved[moved >= 0])))
        for row in pc.indices_nonzero(mask).to_pylist():
            holder = self.inventory.node_ids[int(self.inventory.node_index[row])]
            if holder in self.nodes:
                holding[int(groups.codes[row]), self._host(holder)].add(row)
        target = self.moves.target
        meets: dict[int, int] = {}
        for at in np.flatnonzero((moved >= 0) & (self.broken.codes < 0)).tolist():
            there = holding[int(moved[at]), self._host(target.values[target.codes[at]])]
            if others := there - {row := int(self.rows[at])}:
                meets[at] = min(others)
            else:
                there.add(row)
        self.broken.note(
            np.isin(np.arange(len(self.moves)), list(meets)),
            lambda at: (
                f"replicas must stay apart: the target's host holds {self.inventory.key(meets[at])!a} of the same group"
            ),
            "replicas_apart",
        )

    # -- own arithmetic -------------------------------------------------------------------------------------------
    def _find_rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return each move's (first) row, and how many rows its key has."""
        moved = pc.dictionary_encode(self.moves.keys)
        found = pc.fill_null(pc.index_in(self.inventory.keys, value_set=moved.dictionary), -1)
        numbers = found.to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(numbers >= 0)
        times = np.bincount(numbers[rows], minlength=len(moved.dictionary))
        first = np.full(len(moved.dictionary), -1, np.int64)
        first[numbers[rows][::-1]] = rows[::-1]
        codes = moved.indices.to_numpy(zero_copy_only=False)
        return first[codes], times[codes]

    def _of(self, column: NDArray[S], missing: Any) -> NDArray[S]:  # noqa: ANN401  one value of the column's kind
        """Return what a column of the inventory says of each move's object."""
        values = np.full(len(self.moves), missing, column.dtype)
        there = self.rows >= 0
        values[there] = column[self.rows[there]]
        return values

    def _host(self, node_id: str) -> str:
        host = self.nodes[node_id].host
        return f"host:{host}" if host else f"node:{node_id}"

    def _drains(self, node_id: str) -> bool:
        node = self.nodes.get(node_id)
        return node is not None and node.state is NodeState.DRAINING


def _lacks_class(target: NodeDescriptor, wanted: str) -> str:
    offered = wanted in target.storage_classes
    return "" if offered else f"the object needs storage class {wanted!r}, which the target does not offer"


def _lacks_region(target: NodeDescriptor, allowed: tuple[str, ...]) -> str:
    lies = target.region in allowed
    return "" if lies else f"the target's region {target.region!r} is not among the required {', '.join(allowed)}"


def _lacks_tag(target: NodeDescriptor, tags: tuple[str, ...]) -> str:
    for wanted in tags:
        name, _, value = wanted.partition("=")
        if target.tags.get(name) != value:
            return f"the object needs tag {wanted!r}, which the target does not carry"
    return ""


def _knows(node: NodeDescriptor, key: str) -> bool:
    included = not node.include or any(fnmatchcase(key, pattern) for pattern in node.include)
    return included and not any(fnmatchcase(key, pattern) for pattern in node.exclude)
