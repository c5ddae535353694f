"""Why what stays stays: a reason for every object, and a reasoned "cannot" when the plan misses its target.

Runs after the moves are chosen. Reasons are stable words (`planner_candidates.REASONS`); with the moves they add up to the
inventory. `core.explain` asks here about one object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from rebalance_tasks.core.planning.candidates import CODE, MOVABLE, REASONS, node_rows

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from rebalance_tasks.core.options import RebalancerOptions
    from rebalance_tasks.core.planning.state import Fleet, Work

#: budget option -> the word under which objects it held back are counted, in the order of precedence.
_BUDGET_REASONS: Final = {
    "max_moves_per_cycle": "budget_moves",
    "max_egress_bytes_per_cycle": "budget_egress",
    "max_cost_per_cycle": "budget_cost",
    "max_cost_per_day": "budget_cost",
}
#: Nodes named in one sentence.
_NODES_SHOWN: Final = 5
#: What each reason means, for people.
SENTENCES: Final = {
    "unknown_node": "it is on a node that the fleet does not have",
    "ambiguous": "its key is on more than one node",
    "excluded": "a node's patterns, or a job, leave it alone",
    "invalid_key": "its key is longer than a move can carry",
    "node_not_active": "its node is in maintenance",
    "no_capacity": "its node states no capacity",
    "pinned": "it is pinned",
    "protected_gravity": "its gravity is at gravity_protection_threshold or above",
    "too_young": "it was written to within min_object_age",
    "cooldown": "it was moved within object_cooldown",
    "zero_bytes": "it holds no bytes",
    "too_small": "it is smaller than min_object_size",
    "no_target": "no node may take it, or has room and would be better off",
    "unreachable": "no host reaches both its node and another one of the pool; see `queue` of [[nodes]]",
    "budget_moves": "max_moves_per_cycle was used up",
    "budget_egress": "max_egress_bytes_per_cycle was used up",
    "budget_cost": "max_cost_per_cycle, or the day's, was used up",
    "not_a_candidate": "its node holds more objects than a check keeps apart, and others there come first",
    "not_needed": "balance is reached without it, by objects that are held less or bring more",
}


def wanting(fleet: Fleet, triggered: Iterable[list[int]], options: RebalancerOptions) -> set[int]:
    """Return the nodes that should still give: draining ones, and those above the band of a pool that missed its target."""
    found = set(np.flatnonzero(fleet.draining).tolist())
    for members in triggered:
        if fleet.spread(members) > options.effective_target:
            floor = min(fleet.share(i) for i in members) + options.effective_target
            found |= {i for i in members if fleet.share(i) > floor}
    return found


def held_back_by(limits: Iterable[str]) -> str:
    """Return the reason of an object that should have moved, by the options that bound the plan."""
    limits = frozenset(limits)
    return next((word for name, word in _BUDGET_REASONS.items() if name in limits), "no_target")


def cut_off(fleet: Fleet, i: int) -> bool:
    """Whether no host reaches a node together with one that could take its objects."""
    return not any(fleet.linked(i, j) for j in fleet.takers(fleet.nodes[i].pool) if j != i)


def explain_rest(work: Work, why: NDArray[np.int8], givers: set[int]) -> None:
    """Give every object that could have moved and did not its reason, in place; moved ones stay `MOVABLE`."""
    moved = np.zeros(len(why), np.bool_)
    for chosen in work.chosen:
        moved[chosen.rows] = True
    by_node = np.full(len(work.fleet.nodes) + 1, CODE["not_needed"], np.int8)
    by_node[list(givers)] = CODE[held_back_by(work.ledger.limits)]
    by_node[[i for i in givers if cut_off(work.fleet, i)]] = CODE["unreachable"]
    rest = (why == MOVABLE) & ~moved
    why[rest] = by_node[node_rows(work.inventory, work.fleet)[rest]]


def obstacles(work: Work, why: NDArray[np.int8], givers: set[int]) -> tuple[str, ...]:
    """Say what keeps the nodes that should still give from giving: constraint, how much, an example; most bytes first.

    Empty when no node should give any more, or when a budget is the reason (`limits_reached` says which).
    """
    if not givers or held_back_by(work.ledger.limits) != "no_target":
        return ()
    listed = np.zeros(len(work.fleet.nodes) + 1, np.bool_)
    listed[list(givers)] = True
    rows = np.flatnonzero(listed[node_rows(work.inventory, work.fleet)] & (why != MOVABLE))
    found = []
    for code in np.unique(why[rows]).tolist():
        these = rows[why[rows] == code]
        size_bytes = int(work.inventory.size_bytes[these].sum())
        example = work.inventory.key(int(these[np.argmax(work.inventory.size_bytes[these])]))
        word = REASONS[code]
        found.append(
            (
                size_bytes,
                f"{word}: {len(these)} objects of {size_bytes} bytes, for example {example[:80]!a}: each {SENTENCES[word]}",
            )
        )
    return (*(text for _, text in sorted(found, reverse=True)), *_unlinked(work.fleet, givers))


def _unlinked(fleet: Fleet, givers: set[int]) -> list[str]:
    """Say which nodes with room no host reaches together with a node that should still give."""
    found = []
    for i in sorted(givers):
        takers = [j for j in fleet.takers(fleet.nodes[i].pool) if j != i and fleet.share(j) < fleet.share(i)]
        away = [fleet.nodes[j].node_id for j in takers if not fleet.linked(i, j)]
        if away:
            shown = ", ".join(away[:_NODES_SHOWN]) + (" …" if len(away) > _NODES_SHOWN else "")
            found.append(
                f"unreachable: no host reaches both {fleet.nodes[i].node_id} and {shown}; name a queue that does, or a remote_url"
            )
    return found
