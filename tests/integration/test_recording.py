"""A fleet is recorded by ``rebalance simulate`` and played again where none of its nodes is."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from rebalance_tasks.cli.app import run
from rebalance_tasks.cli.recording import recorded_nodes
from rebalance_tasks.core.errors import InvalidInventory
from tests.support.arena import objects
from tests.support.fleets import NodeSpec

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FleetFactory

pytestmark = pytest.mark.integration

ARGS = ["--cycles", "3", "--start", "2030-01-01T00:00:00+00:00", "--json"]


def test_what_was_recorded_plays_the_same_without_the_nodes(
    fleet_config: FleetFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def played(*args: str) -> Any:
        assert run(["simulate", *args, *ARGS]) == 0
        return json.loads(capsys.readouterr().out)

    nodes = {
        "a": NodeSpec(objects(30, 1000), 40_000),
        "b": NodeSpec({}, 40_000, {"storage_options": {"durability": "none"}}),
    }
    fleet = fleet_config(nodes)
    path = tmp_path / "fleet.parquet"
    before = played("--record", str(path))
    assert before["totals"]["moves"] > 0
    for root in fleet.roots.values():
        shutil.rmtree(root)
    fleet_config({})
    assert played("--inventory", str(path)) == before
    recorded = {node.node_id: node for node in recorded_nodes(path)}
    assert recorded["a"].used_bytes == 30_000
    assert recorded["b"].storage_options == {}


def test_a_recording_is_a_parquet_file_with_nodes_that_are_nodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["simulate", "--synthetic", "3", "--record", str(tmp_path / "fleet.csv"), *ARGS]) == 1
    assert "let its name end in .parquet" in capsys.readouterr().err
    table = pa.table({"object_key": ["k"], "size_bytes": [1], "node_id": ["n"]})
    parquet.write_table(table, tmp_path / "plain.parquet")
    assert recorded_nodes(tmp_path / "plain.parquet") == ()
    parquet.write_table(table.replace_schema_metadata({b"rebalance.nodes": b"[{}]"}), tmp_path / "odd.parquet")
    with pytest.raises(InvalidInventory, match="cannot be read as a recording"):
        recorded_nodes(tmp_path / "odd.parquet")
