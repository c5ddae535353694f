"""What it costs to send bytes from one node to another."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from rebalance_tasks.core.models import NodeDescriptor


def per_gb(source: NodeDescriptor, target: NodeDescriptor, prices: Mapping[tuple[str, str], Decimal]) -> Decimal:
    """Return the money for 10⁹ bytes: the price between the nodes' zones, else regions, else the source's own."""
    for pair in ((source.zone, target.zone), (source.region, target.region)):
        if pair in prices:
            return prices[pair]
    return source.egress_cost_per_gb
