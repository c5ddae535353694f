"""A host's package whose one provider answers all dimensions of gravity, as `rebalance_tasks.providers` finds it."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any, Final

from tests.support.fleets import toml_table

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.support.fleets import Fleet

DIMENSIONS: Final = ("access", "colocation", "egress", "latency", "compliance")

#: Only the dimension that a file names knows anything: it holds fully all objects but those of the folder of its name.
_MODULE: Final = """
from pathlib import Path

NOT_KNOWN = float("nan")
SWITCH = Path(__file__).with_name("switch")


class Host:
    def __init__(self):
        self.opened = True

    def _column(self, dimension, keys, held, free):
        if SWITCH.read_text() != dimension:
            return [NOT_KNOWN] * len(keys)
        return [free if key.startswith(dimension + "/") else held for key in keys]

    def reads_and_writes_per_hour(self, keys):
        return self._column("access", keys, 9_000.0, 0.0), [NOT_KNOWN] * len(keys)

    def colocated_dependencies(self, keys, nodes):
        return self._column("colocation", keys, 10, 0)

    def egress_cost_per_gb(self, keys, nodes):
        return self._column("egress", keys, 0.12, 0.0)

    def latency_ms(self, keys, nodes):
        return self._column("latency", keys, 0.0, 500.0)

    def compliant(self, keys, nodes):
        return self._column("compliance", keys, True, False)
"""


def install(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install it for this process and its children; return the file that names the dimension which knows something."""
    site = directory / "site"
    info = site / "acme_measures-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-measures\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rebalance_tasks.providers]\nacme-measures = acme_measures:Host\n")
    (site / "acme_measures.py").write_text(_MODULE)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
    importlib.invalidate_caches()
    switch = site / "switch"
    switch.write_text("nothing")
    return switch


def configure(fleet: Fleet, **gravity: Any) -> None:
    """Add ``[gravity]`` to a fleet's file."""
    text = fleet.config.read_text(encoding="utf-8")
    fleet.config.write_text(f"{text}\n[gravity]\n{toml_table(gravity)}", encoding="utf-8")
