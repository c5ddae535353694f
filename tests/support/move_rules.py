"""The rules that a move keeps by itself, asked of one move after the other: the plain form that `verifying.moves` is held to."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from rebalance_tasks.core.errors import PlanInvariantError
from rebalance_tasks.core.gravity import score
from rebalance_tasks.core.inventory import UNKNOWN_TIME
from rebalance_tasks.core.models import NodeState

if TYPE_CHECKING:
    from rebalance_tasks.core.inventory import Inventory
    from rebalance_tasks.core.models import NodeDescriptor, RebalanceMove, RebalancePlan
    from rebalance_tasks.core.options import RebalancerOptions


def broken(move: RebalanceMove, rule: str, word: str = "invalid") -> NoReturn:
    msg = f"move of {move.object_key!a} from {move.source_node!r} to {move.target_node!r}: {rule}"
    raise PlanInvariantError(msg, word=word)


class OneByOne:
    def __init__(
        self,
        plan: RebalancePlan,
        nodes: dict[str, NodeDescriptor],
        inventory: Inventory,
        options: RebalancerOptions,
        moment_ns: int | None,
    ) -> None:
        self.plan, self.nodes, self.inventory, self.options = plan, nodes, inventory, options
        self.moment_ns = moment_ns
        self.rows: dict[str, list[int]] = {}
        for row, key in enumerate(inventory.keys.to_pylist()):
            self.rows.setdefault(key, []).append(row)

    def refused(self) -> dict[int, PlanInvariantError]:
        """Position of a move → the first rule it breaks."""
        found: dict[int, PlanInvariantError] = {}
        for at, move in enumerate(self.plan.moves):
            try:
                self.each(move)
            except PlanInvariantError as exc:
                found[at] = exc
        return found

    def each(self, move: RebalanceMove) -> None:
        self.ends(move)
        row = self.row(move)
        self.protections(move, row)
        self.requirements(move, row)

    def ends(self, move: RebalanceMove) -> None:
        for node_id in (move.source_node, move.target_node):
            if node_id not in self.nodes:
                broken(move, f"node {node_id!r} is unknown", "unknown_node")
        source, target = self.nodes[move.source_node], self.nodes[move.target_node]
        if source.node_id == target.node_id:
            broken(move, "source and target are the same node")
        if source.pool != target.pool:
            broken(move, f"pools differ ({source.pool!r}, {target.pool!r})")
        reaching = [set(node.queue.split(",")) for node in (source, target) if node.queue]
        if reaching and not target.remote_url and not set.intersection(*reaching):
            broken(move, f"no host reaches both nodes (queues {source.queue!r}, {target.queue!r})", "unreachable")
        if source.state not in {NodeState.ACTIVE, NodeState.DRAINING} or not source.capacity_bytes:
            broken(
                move,
                f"the source is {source.state} with capacity {source.capacity_bytes} and does not give",
                "node_state",
            )
        if target.state is not NodeState.ACTIVE or not target.capacity_bytes:
            broken(
                move,
                f"the target is {target.state} with capacity {target.capacity_bytes} and does not take",
                "node_state",
            )

    def row(self, move: RebalanceMove) -> int:
        rows = self.rows.get(move.object_key, [])
        if not rows:
            broken(move, "the object is not in the inventory", "source_gone")
        if len(rows) > 1:
            broken(move, "the key is ambiguous: it is on more than one node", "ambiguous")
        holder = self.inventory.node_ids[int(self.inventory.node_index[rows[0]])]
        if holder != move.source_node:
            broken(move, f"the source does not hold the object, {holder!r} does", "source_gone")
        if (size := int(self.inventory.size_bytes[rows[0]])) != move.size_bytes:
            broken(move, f"size is {move.size_bytes}, the inventory says {size}", "source_changed")
        return rows[0]

    def protections(self, move: RebalanceMove, row: int) -> None:
        inventory, options = self.inventory, self.options
        gravity = move.gravity if inventory.gravity is None else float(inventory.gravity[row])
        if gravity != move.gravity:
            broken(move, f"gravity is {move.gravity}, the inventory says {gravity}")
        if gravity >= options.gravity_protection_threshold:
            broken(
                move,
                f"the object is protected: gravity {gravity} ≥ {options.gravity_protection_threshold}",
                "protected",
            )
        own = self.composed(move.source_node, row)
        if own >= options.gravity_protection_threshold and abs(own - gravity) > 1e-9:
            most = options.gravity_protection_threshold
            broken(move, f"the object is protected: its measures come to {own:.4f} ≥ {most}", "protected")
        if inventory.pinned is not None and inventory.pinned[row]:
            broken(move, "the object is pinned", "pinned")
        draining = self.nodes[move.source_node].state is NodeState.DRAINING
        if move.size_bytes < options.min_object_size and not (draining or self.plan.undo_of):
            broken(
                move,
                f"the object has {move.size_bytes} bytes, fewer than min_object_size {options.min_object_size}",
                "too_small",
            )
        for column, least, rule, word in (
            (inventory.mtime_ns, options.min_object_age, "the object is younger than min_object_age", "too_young"),
            (
                inventory.last_moved_ns,
                options.object_cooldown,
                "the object was moved within object_cooldown",
                "cooldown",
            ),
        ):
            if column is None or self.moment_ns is None or not least or column[row] == UNKNOWN_TIME:
                continue
            if self.plan.undo_of and column is inventory.last_moved_ns:
                continue  # an undo moves back what has just been moved
            least_ns = (least.days * 86_400 + least.seconds) * 10**9 + least.microseconds * 1000
            if self.moment_ns - int(column[row]) < least_ns:
                broken(move, rule, word)

    def composed(self, source: str, row: int) -> float:
        """Gravity by measures, with nodes that have no price matrix; 0 where there are none, or gravity is told."""
        inventory, node = self.inventory, self.nodes[source]
        reads, near, far = inventory.reads_per_hour, inventory.colocated_dependencies, inventory.latency_ms
        if inventory.gravity is not None or (reads is None and near is None and far is None):
            return 0.0
        regions = inventory.required_regions
        inside = regions is not None and regions.codes[row] >= 0 and node.region in regions.values[regions.codes[row]]
        return score(
            inventory.key(row),
            source,
            reads_per_hour=0.0 if reads is None else float(reads[row]),
            colocated_dependencies=0 if near is None else int(near[row]),
            egress_cost_per_gb=node.egress_cost_per_gb,
            latency_ms=node.latency_ms if far is None or np.isnan(far[row]) else float(far[row]),
            compliant=inside,
            weights=self.options.scoring_weights,
        ).composite_score

    def requirements(self, move: RebalanceMove, row: int) -> None:
        source, target, inventory = self.nodes[move.source_node], self.nodes[move.target_node], self.inventory
        if (classes := inventory.required_storage_class) is not None and classes.codes[row] >= 0:
            wanted = classes.values[classes.codes[row]]
            if wanted not in target.storage_classes:
                broken(
                    move, f"the object needs storage class {wanted!r}, which the target does not offer", "requirements"
                )
        if (regions := inventory.required_regions) is not None and regions.codes[row] >= 0:
            allowed = regions.values[regions.codes[row]]
            if target.region not in allowed:
                broken(
                    move,
                    f"the target's region {target.region!r} is not among the required {', '.join(allowed)}",
                    "requirements",
                )
        if (tags := inventory.required_tags) is not None and tags.codes[row] >= 0:
            for wanted in tags.values[tags.codes[row]]:
                name, _, value = wanted.partition("=")
                if target.tags.get(name) != value:
                    broken(move, f"the object needs tag {wanted!r}, which the target does not carry", "requirements")
        for node in (source, target):
            included = not node.include or any(fnmatchcase(move.object_key, pattern) for pattern in node.include)
            if not included or any(fnmatchcase(move.object_key, pattern) for pattern in node.exclude):
                broken(move, f"node {node.node_id!r} excludes this key", "excluded")
