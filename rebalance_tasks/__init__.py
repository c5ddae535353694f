"""rebalance-tasks: an autonomous, gravity-aware rebalancer for fleets of storage nodes, as Celery tasks on Redis.

Everything public is imported from here, and loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rebalance_tasks.celery import app
    from rebalance_tasks.client import Rebalancer
    from rebalance_tasks.control.reindex_report import ReindexReport
    from rebalance_tasks.core.catalogue import Flip, HostCatalogue
    from rebalance_tasks.core.crush import CompiledFleet, CrushPlacementAlgorithm
    from rebalance_tasks.core.errors import (
        ConfigurationError,
        EmptyClusterError,
        InvalidArgument,
        InvalidInventory,
        InvalidKey,
        JobActive,
        JobNotFound,
        NodeMissing,
        NodeNotWritable,
        ObjectNotFound,
        PermanentError,
        PlanInvariantError,
        PlanNotFound,
        RebalanceError,
        RetryableError,
    )
    from rebalance_tasks.core.inventory import Inventory
    from rebalance_tasks.core.models import (
        CheckResult,
        ConstraintType,
        ControlResult,
        DataGravityScore,
        FailureGroup,
        NodeDescriptor,
        NodeState,
        PlacementConstraint,
        PlacementDecision,
        PlacementTarget,
        RebalanceJob,
        RebalanceMove,
        RebalancePlan,
        StorageClass,
    )
    from rebalance_tasks.core.optimizer import GravityAwarePlacementOptimizer
    from rebalance_tasks.core.options import GravityScoringWeights, RebalancerOptions
    from rebalance_tasks.core.placement.movement import Movement
    from rebalance_tasks.core.states import RebalanceStatus
    from rebalance_tasks.core.verify import verify_plan
    from rebalance_tasks.settings import Settings, load_settings

__version__: Final = "0.1.0"

#: public name -> the module that holds it (the import of pyarrow, celery and redis waits until they are needed)
_HOMES: Final = {
    "app": "celery",
    "Rebalancer": "client",
    "CompiledFleet": "core.crush",
    "CrushPlacementAlgorithm": "core.crush",
    "Flip": "core.catalogue",
    "HostCatalogue": "core.catalogue",
    "ConfigurationError": "core.errors",
    "EmptyClusterError": "core.errors",
    "InvalidArgument": "core.errors",
    "InvalidInventory": "core.errors",
    "InvalidKey": "core.errors",
    "JobActive": "core.errors",
    "JobNotFound": "core.errors",
    "NodeMissing": "core.errors",
    "NodeNotWritable": "core.errors",
    "ObjectNotFound": "core.errors",
    "PermanentError": "core.errors",
    "PlanInvariantError": "core.errors",
    "PlanNotFound": "core.errors",
    "RebalanceError": "core.errors",
    "RetryableError": "core.errors",
    "Inventory": "core.inventory",
    "CheckResult": "core.models",
    "ConstraintType": "core.models",
    "ControlResult": "core.models",
    "DataGravityScore": "core.models",
    "FailureGroup": "core.models",
    "ReindexReport": "control.reindex_report",
    "NodeDescriptor": "core.models",
    "NodeState": "core.models",
    "PlacementConstraint": "core.models",
    "PlacementDecision": "core.models",
    "PlacementTarget": "core.models",
    "RebalanceJob": "core.models",
    "RebalanceMove": "core.models",
    "RebalancePlan": "core.models",
    "StorageClass": "core.models",
    "Movement": "core.placement.movement",
    "GravityAwarePlacementOptimizer": "core.optimizer",
    "GravityScoringWeights": "core.options",
    "RebalancerOptions": "core.options",
    "RebalanceStatus": "core.states",
    "verify_plan": "core.verify",
    "Settings": "settings",
    "load_settings": "settings",
}

__all__ = [
    "CheckResult",
    "CompiledFleet",
    "ConfigurationError",
    "ConstraintType",
    "ControlResult",
    "CrushPlacementAlgorithm",
    "DataGravityScore",
    "EmptyClusterError",
    "FailureGroup",
    "Flip",
    "GravityAwarePlacementOptimizer",
    "GravityScoringWeights",
    "HostCatalogue",
    "InvalidArgument",
    "InvalidInventory",
    "InvalidKey",
    "Inventory",
    "JobActive",
    "JobNotFound",
    "Movement",
    "NodeDescriptor",
    "NodeMissing",
    "NodeNotWritable",
    "NodeState",
    "ObjectNotFound",
    "PermanentError",
    "PlacementConstraint",
    "PlacementDecision",
    "PlacementTarget",
    "PlanInvariantError",
    "PlanNotFound",
    "RebalanceError",
    "RebalanceJob",
    "RebalanceMove",
    "RebalancePlan",
    "RebalanceStatus",
    "Rebalancer",
    "RebalancerOptions",
    "ReindexReport",
    "RetryableError",
    "Settings",
    "StorageClass",
    "app",
    "load_settings",
    "verify_plan",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401  whatever the name stands for
    home = _HOMES.get(name)
    if home is None:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
