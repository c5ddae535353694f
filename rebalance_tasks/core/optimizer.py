"""Placement and gravity together: where an object should live, given how strongly it is held where it is.

The measures come from *providers*, one per dimension, so that a host can plug in its own catalogue, access log or
price list. A provider answers for a batch of objects at once; one that is missing yields the documented default of its
dimension (access 0, colocation 0, egress 0, latency unknown, compliance 0). Only the location has no default: an object
that no node is known to hold has no gravity, it raises `ObjectNotFound`.

Invariant kept here: gravity never moves a replica out of the set that placement chose, it only decides which comes first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import numpy.typing as npt

from rebalance_tasks.core.errors import InvalidArgument, ObjectNotFound
from rebalance_tasks.core.gravity import F64, PRIMARY_THRESHOLD, composite, score
from rebalance_tasks.core.options import GravityScoringWeights, RebalancerOptions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from decimal import Decimal

    from rebalance_tasks.core.crush import ClusterMap, CrushPlacementAlgorithm
    from rebalance_tasks.core.inventory import Inventory
    from rebalance_tasks.core.models import (
        DataGravityScore,
        PlacementConstraint,
        PlacementDecision,
        PlacementTarget,
        RebalancePlan,
    )


class LocationProvider(Protocol):
    """Knows which node holds an object."""

    def current_nodes(self, keys: Sequence[str]) -> Sequence[str | None]:
        """Return the node of each key, None where nobody holds it."""


class AccessProvider(Protocol):
    """Knows how often and when objects are used."""

    def reads_and_writes_per_hour(self, keys: Sequence[str]) -> tuple[npt.ArrayLike, npt.ArrayLike]:
        """Return reads and writes an hour, each (n,), ≥ 0, NaN unknown."""

    def last_access_utc(self, keys: Sequence[str]) -> Sequence[datetime | None]:
        """Return when each was last used."""


class ColocationProvider(Protocol):
    """Knows what an object is used together with."""

    def colocated_dependencies(self, keys: Sequence[str], nodes: Sequence[str]) -> npt.ArrayLike:
        """Return how many objects that each depends on are on its node, (n,), ≥ 0."""


class EgressProvider(Protocol):
    """Knows what it costs to take an object away."""

    def egress_cost_per_gb(self, keys: Sequence[str], nodes: Sequence[str]) -> Sequence[Decimal | float]:
        """Return the price of 10⁹ bytes leaving each node, (n,), ≥ 0."""


class LatencyProvider(Protocol):
    """Knows how near a node is to those who use it."""

    def latency_ms(self, keys: Sequence[str], nodes: Sequence[str]) -> npt.ArrayLike:
        """Return milliseconds, (n,), ≥ 0, NaN unknown."""


class ComplianceProvider(Protocol):
    """Knows where an object may live."""

    def compliant(self, keys: Sequence[str], nodes: Sequence[str]) -> npt.ArrayLike:
        """Return whether each node's region complies with what its object asks, bool (n,)."""


@dataclass(frozen=True)
class GravityProviders:
    """Where the measures come from; None takes the default of the dimension."""

    location: LocationProvider | None = None
    access: AccessProvider | None = None
    colocation: ColocationProvider | None = None
    egress: EgressProvider | None = None
    latency: LatencyProvider | None = None
    compliance: ComplianceProvider | None = None


@dataclass(frozen=True)
class _Measures:
    """What the providers said about n objects: columns of length n."""

    nodes: list[str]
    reads: F64
    writes: F64
    colocated: F64
    egress: Sequence[Decimal | float] | F64
    latency_ms: F64
    compliant: F64


class GravityAwarePlacementOptimizer:
    """Placement by CRUSH, corrected by gravity.

    Args:
        crush: the placement algorithm.
        weights: how the five scores count; None is the default (and leaves a plan to its options' weights).
        providers: where the measures come from.
    """

    def __init__(
        self,
        crush: CrushPlacementAlgorithm,
        weights: GravityScoringWeights | None = None,
        providers: GravityProviders | None = None,
    ) -> None:
        """Keep the parts; nothing is asked of a provider yet."""
        self.crush = crush
        self.weights = weights
        self.providers = providers or GravityProviders()

    def compute_gravity(self, key: str) -> DataGravityScore:
        """Return the measures and the composite of one object.

        Raises:
            ObjectNotFound: no node is known to hold it.
            InvalidArgument: a provider gave a negative measure or the wrong number of them.
        """
        measures = self._measure([key])
        access = self.providers.access
        latency_ms = float(measures.latency_ms[0])
        return score(
            key,
            measures.nodes[0],
            reads_per_hour=float(np.nan_to_num(measures.reads[0])),
            writes_per_hour=float(np.nan_to_num(measures.writes[0])),
            last_access_utc=access.last_access_utc([key])[0] if access is not None else None,
            colocated_dependencies=int(np.nan_to_num(measures.colocated[0])),
            egress_cost_per_gb=measures.egress[0],
            latency_ms=None if np.isnan(latency_ms) else latency_ms,
            compliant=bool(measures.compliant[0] > 0),
            weights=self.weights,
        )

    def compute_gravity_batch(self, keys: Sequence[str]) -> F64:
        """Return the composite of many objects, each equal to that of `compute_gravity`.

        Returns:
            float64 (n,), in [0, 1].

        Raises:
            ObjectNotFound: no node is known to hold one of them; names the first.
            InvalidArgument: a provider gave a negative measure or the wrong number of them.
        """
        if len(keys) == 0:
            return np.empty(0, dtype=np.float64)
        measures = self._measure(keys)
        return composite(
            np.nan_to_num(measures.reads) + np.nan_to_num(measures.writes),
            np.floor(measures.colocated),
            _column(measures.egress, "egress", len(keys)),
            measures.latency_ms,
            measures.compliant,
            self.weights,
        )

    def optimize_placement(
        self,
        target: PlacementTarget,
        cluster_map: ClusterMap,
        gravity: DataGravityScore | None = None,
        constraints: Sequence[PlacementConstraint] | None = None,
    ) -> PlacementDecision:
        """Place an object by CRUSH; where gravity is above 0.7 and its node is among the chosen, that node comes first.

        The others keep their order. The set of nodes is always the one CRUSH chose.

        Raises:
            EmptyClusterError: no node is eligible.
            InvalidArgument: `gravity` is another object's.
        """
        if gravity is not None and gravity.object_key != target.object_key:
            msg = f"gravity: it is that of {gravity.object_key!r}, but {target.object_key!r} is to be placed"
            raise InvalidArgument(msg)
        decision = self.crush.compute_placement(target, cluster_map, constraints)
        if gravity is None or gravity.composite_score <= PRIMARY_THRESHOLD:
            return decision
        held_by = gravity.current_node
        if held_by == decision.primary_node or held_by not in decision.target_nodes:
            return decision
        others = tuple(node for node in decision.target_nodes if node != held_by)
        return decision.model_copy(
            update={"target_nodes": (held_by, *others), "primary_node": held_by, "replica_nodes": others}
        )

    def generate_rebalance_plan(
        self,
        cluster_map: ClusterMap,
        inventory: Inventory,
        options: RebalancerOptions | None = None,
        *,
        fleet: str = "default",
        epoch: int = 0,
        plan_id: str | None = None,
        now: datetime | None = None,
    ) -> RebalancePlan:
        """Plan the moves that restore balance (see `rebalance_tasks.core.planner.plan_rebalance`).

        Args:
            cluster_map: the fleet.
            inventory: what it holds.
            options: limits and budgets; None is the default. Weights given to this optimiser replace theirs.
            fleet: its name, written into the plan.
            epoch: the fleet's epoch the plan is made in.
            plan_id: None derives one from the content.
            now: aware; ages and cooldowns are measured from it.
        """
        from rebalance_tasks.core.planner import plan_rebalance  # noqa: PLC0415  the planner may import placement

        options = options or RebalancerOptions()
        if self.weights is not None:
            options = options.model_copy(update={"scoring_weights": self.weights})
        return plan_rebalance(
            list(cluster_map), inventory, options=options, fleet=fleet, epoch=epoch, plan_id=plan_id, now=now
        )

    def _measure(self, keys: Sequence[str]) -> _Measures:
        ask, n = self.providers, len(keys)
        located = [None] * n if ask.location is None else list(ask.location.current_nodes(keys))
        if len(located) != n:
            msg = f"location provider: answered {len(located)} nodes for {n} objects; one node per object is expected"
            raise InvalidArgument(msg)
        if None in located:
            raise ObjectNotFound(keys[located.index(None)])
        nodes = cast("list[str]", located)
        reads, writes = (0.0, 0.0) if ask.access is None else ask.access.reads_and_writes_per_hour(keys)
        colocated = 0.0 if ask.colocation is None else ask.colocation.colocated_dependencies(keys, nodes)
        latency_ms = np.nan if ask.latency is None else ask.latency.latency_ms(keys, nodes)
        compliant = 0.0 if ask.compliance is None else ask.compliance.compliant(keys, nodes)
        return _Measures(
            nodes=nodes,
            reads=_column(reads, "reads", n),
            writes=_column(writes, "writes", n),
            colocated=_column(colocated, "colocation", n),
            egress=np.zeros(n) if ask.egress is None else ask.egress.egress_cost_per_gb(keys, nodes),
            latency_ms=_column(latency_ms, "latency", n),
            compliant=_column(compliant, "compliance", n),
        )


def _column(values: npt.ArrayLike | Sequence[Decimal | float] | F64, name: str, n: int) -> F64:
    """Return a provider's answer as float64 (n,); a scalar counts for every object."""
    column = np.asarray(values, dtype=np.float64)
    if column.ndim == 0:
        return np.full(n, column, dtype=np.float64)
    if column.shape != (n,):
        msg = f"{name} provider: answered with shape {column.shape} for {n} objects; one value per object is expected"
        raise InvalidArgument(msg)
    return column
