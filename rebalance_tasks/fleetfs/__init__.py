"""``fleet://<fleet>/<key>``: the objects of a fleet as one file system for fsspec, while they are read, written and moved.

fsspec finds it by its entry point, so pandas, pyarrow, polars and plain `fsspec.open` take such URLs. It needs the fleet's
configuration (``REBALANCE_CONFIG``), and neither Celery nor a worker.
"""

from rebalance_tasks.fleetfs.filesystem import FleetFileSystem

__all__ = ["FleetFileSystem"]
