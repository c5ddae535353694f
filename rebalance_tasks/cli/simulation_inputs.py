"""What a simulation is played with: the configured fleet and an inventory file, the fleet as it is now, or a made-up one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rebalance_tasks.cli.recording import recorded_nodes
from rebalance_tasks.control.inventories import read_inventory
from rebalance_tasks.core.errors import ConfigurationError
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.core.simulating.fleet import synthetic_fleet
from rebalance_tasks.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal
    from pathlib import Path

    from rebalance_tasks.core.inventory import Inventory
    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.core.options import RebalancerOptions


@dataclass(frozen=True, slots=True)
class Given:
    """A fleet, its objects and its rules."""

    nodes: list[NodeDescriptor]
    inventory: Inventory
    options: RebalancerOptions
    prices: Mapping[tuple[str, str], Decimal]


def from_file(path: Path) -> Given:
    """The fleet of a recording, or the configured one with the objects that a file lists. Raises: ConfigurationError, InvalidInventory."""
    settings = load_settings()
    nodes = recorded_nodes(path) or settings.nodes
    if not nodes:
        msg = "no nodes are configured; name a rebalance.toml with --config, or try --synthetic"
        raise ConfigurationError(msg)
    inventory = read_inventory(path)
    unstated = [node.node_id for node in nodes if not node.capacity_bytes and node.state is not NodeState.MAINTENANCE]
    if unstated:
        msg = f"a simulation looks at no disk: state capacity_bytes for {', '.join(unstated)} in rebalance.toml"
        raise ConfigurationError(msg)
    prices = settings.price_matrix
    return Given(list(nodes), inventory, settings.options, prices)


def made_up(*, nodes: int, objects: int, fill: float, spread: float, mean_bytes: int, seed: int) -> Given:
    """A made-up fleet under the configured options (the defaults, where there is no configuration)."""
    settings = load_settings()
    made, inventory = synthetic_fleet(
        nodes=nodes, objects=objects, fill=fill, spread=spread, mean_bytes=mean_bytes, seed=seed
    )
    return Given(made, inventory, settings.options, {})
