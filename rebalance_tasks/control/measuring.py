"""What is known of objects beside their keys and sizes, from wherever ``[gravity]`` and ``[[rules]]`` say.

listing ─▶ **measured** ─▶ inventory with measures of use ─▶ candidates, plan

A host answers for a dimension of gravity by an entry point (``provider:NAME``): an object with the method of that dimension in
`core.optimizer`, or a class that makes one without arguments. It is asked for many keys at a time, and its answers are checked
like an inventory's rows: what it does not know is NaN and takes the documented default, anything else that makes no sense is
refused with the provider's name and the key.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np

from rebalance_tasks.control.access_log import read_access_log
from rebalance_tasks.control.providers import load_provider
from rebalance_tasks.core.errors import ConfigurationError
from rebalance_tasks.core.measures import (
    with_access_counts,
    with_access_from_times,
    with_datasets,
    with_neighbours,
    with_told,
)
from rebalance_tasks.core.rules import with_rules
from rebalance_tasks.store.accesses import AccessStore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.core.inventory import Inventory

#: Keys that a provider is asked for at a time: as Python strings they are some 30 MB.
BLOCK_ROWS: Final = 1 << 18
#: Fleets, dimensions and packages in one process: a few.
_KEPT: Final = 32


@dataclass(frozen=True, slots=True)
class Dimension:
    """How a provider is asked for one dimension.

    Attributes:
        method: of the provider, as in `core.optimizer`.
        columns: of the inventory, that it answers.
        by_node: whether it is also told where each object is.
    """

    method: str
    columns: tuple[str, ...]
    by_node: bool = True


#: Setting of ``[gravity]`` → what is asked.
DIMENSIONS: Final = {
    "access": Dimension("reads_and_writes_per_hour", ("reads_per_hour", "writes_per_hour"), by_node=False),
    "colocation": Dimension("colocated_dependencies", ("colocated_dependencies",)),
    "egress": Dimension("egress_cost_per_gb", ("egress_cost_per_gb",)),
    "latency": Dimension("latency_ms", ("latency_ms",)),
    "compliance": Dimension("compliant", ("compliant",)),
}


def measured(context: FleetContext, inventory: Inventory) -> Inventory:
    """Add what the fleet's rules say, and the measures of use that are configured where the inventory has none.

    Raises:
        ConfigurationError: a log cannot be read, or a provider is not installed, fails, or answers what makes no sense.
    """
    inventory, wanted = with_rules(inventory, context.settings.rules), context.settings.gravity
    for setting, source in wanted.provided.items():
        inventory = with_provided(inventory, setting, source)
    if "access" not in wanted.provided:
        inventory = _with_access(context, inventory)
    match wanted.colocation:
        case "folder":
            return with_neighbours(inventory)
        case "dataset":
            return with_datasets(inventory, context.settings.rules)
        case _:
            return inventory


def _with_access(context: FleetContext, inventory: Inventory) -> Inventory:
    counts: Mapping[str, tuple[int, int]]
    match context.settings.gravity.access:
        case "none":
            return inventory
        case "times" | "atime":
            return with_access_from_times(inventory, context.connection.now_ms() * 10**6)
        case "fleet":
            counts, hours = AccessStore(context.connection, context.keys).recent()
        case path:
            counts, hours = read_access_log(Path(path))
    return with_access_counts(inventory, counts, hours)


def with_provided(inventory: Inventory, setting: str, source: str) -> Inventory:
    """Add what a provider answers for one dimension; columns that the inventory has already stay.

    Args:
        inventory: whose objects it is asked for.
        setting: of ``[gravity]``.
        source: ``provider:`` and a name.

    Raises:
        ConfigurationError: as `measured`.
    """
    dimension = DIMENSIONS[setting]
    if all(getattr(inventory, column) is not None for column in dimension.columns):
        return inventory
    asked = _Asked(setting, source, dimension)
    blocks = [asked.about(inventory, first) for first in range(0, len(inventory), BLOCK_ROWS)]
    found = {
        column: np.concatenate([np.empty(0), *(block[at] for block in blocks)])
        for at, column in enumerate(dimension.columns)
    }
    return with_told(inventory, **found)


@dataclass(frozen=True, slots=True)
class _Asked:
    """One provider, asked for one dimension."""

    setting: str
    source: str
    dimension: Dimension

    def about(self, inventory: Inventory, first: int) -> list[NDArray[np.float64]]:
        """Return its answer for some rows, float64 (rows,) a column."""
        keys: list[str] = inventory.keys.slice(first, BLOCK_ROWS).to_pylist()
        names = inventory.node_ids
        nodes = [names[at] for at in inventory.node_index[first : first + BLOCK_ROWS].tolist()]
        provider, method = self._provider(), self.dimension.method
        try:
            answer = getattr(provider, method)(*((keys, nodes) if self.dimension.by_node else (keys,)))
            columns = (answer,) if len(self.dimension.columns) == 1 else tuple(answer)
        except Exception as exc:
            msg = f"{self._name}: {method} failed: {type(exc).__name__}: {exc}"
            raise ConfigurationError(msg) from exc
        if len(columns) != len(self.dimension.columns):
            self._refuse(f"{len(columns)} columns for {' and '.join(self.dimension.columns)}")
        return [self._column(column, keys) for column in columns]

    @property
    def _name(self) -> str:
        return f"[gravity] {self.setting} = {self.source!r}"

    def _provider(self) -> Any:  # noqa: ANN401  whatever a package offers
        found = _opened(self.source, f"[gravity] {self.setting}", os.getpid())
        if not callable(getattr(found, self.dimension.method, None)):
            msg = f"{self._name}: {type(found).__name__} has no method {self.dimension.method} (docs/how-to/write-a-provider.md)"
            raise ConfigurationError(msg)
        return found

    def _column(self, answer: object, keys: Sequence[str]) -> NDArray[np.float64]:
        """Return one answer as float64 (keys,); a single value counts for every object."""
        try:
            column = np.asarray(answer, dtype=np.float64)
        except (TypeError, ValueError) as exc:
            self._refuse(f"what is no column of numbers ({exc})", exc)
        if column.ndim == 0:
            column = np.full(len(keys), column)
        if column.shape != (len(keys),):
            self._refuse(f"shape {column.shape} for {len(keys)} objects; one value an object is expected")
        wrong = np.flatnonzero((column < 0) | np.isinf(column))
        if len(wrong):
            at = int(wrong[0])
            self._refuse(f"{column[at]} for {keys[at]!a}; a measure is 0 or more, and NaN where it is not known")
        return column

    def _refuse(self, what: str, why: Exception | None = None) -> NoReturn:
        msg = f"{self._name}: {self.dimension.method} answered {what}"
        raise ConfigurationError(msg) from why


@lru_cache(maxsize=_KEPT)
def _opened(source: str, setting: str, _process: int) -> Any:  # noqa: ANN401  whatever a package offers
    """Load a provider once per process, and never share what it opened with a fork."""
    found = load_provider(source, setting=setting)
    if not isinstance(found, type):
        return found
    try:
        return found()
    except Exception as exc:
        msg = f"{setting} = {source!r}: {found.__name__}() failed: {type(exc).__name__}: {exc}"
        raise ConfigurationError(msg) from exc
