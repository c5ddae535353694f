"""Where readers and writers are sent: chains of moves, overrides, computed homes, and a key that moves while it is looked for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import fsspec
import pytest

from rebalance_tasks import ObjectNotFound, Rebalancer
from rebalance_tasks.cli.app import run
from rebalance_tasks.core.crush import CrushPlacementAlgorithm
from rebalance_tasks.core.models import PlacementTarget
from tests.support import host
from tests.support.engine import Engine, move
from tests.support.fleets import made_up

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration

NODES = ("n1", "n2", "n3")
SIZE = 3000
OPTIONS = {"throttle_bytes_per_sec": "none", "object_cooldown": "0s"}


def carry(engine: Engine, *moves: tuple[str, str, str]) -> None:
    """Make moves (key, source, target) in a job of their own, and free what they leave."""
    job_id = f"j{engine.context.connection.now_ms()}"
    engine.start([move(*one, SIZE) for one in moves], job_id=job_id)
    assert engine.finish(job_id).completed_moves == len(moves)
    engine.cleanup(later_ms=10**9)


def home_of(key: str) -> str:
    """The node that placement computes, by the public algorithm."""
    client = Rebalancer()
    return str(
        CrushPlacementAlgorithm().compute_placement(PlacementTarget(object_key=key), client.cluster_map()).primary_node
    )


def test_a_chain_of_moves_is_one_forwarding_to_its_end(fleet_config: FleetFactory) -> None:
    fleet_config({"n1": {"k": SIZE}, "n2": {}, "n3": {}}, options=OPTIONS)
    client = Rebalancer()
    client.adopt()
    engine = Engine()
    for source, target in (("n1", "n2"), ("n2", "n3"), ("n3", "n1"), ("n1", "n3")):
        carry(engine, ("k", source, target))
        place = client.locate("k")
        assert (place, place.via, place.hops) == (target, "forwarding", 1)
        entries = engine.context.connection.hgetall(engine.context.keys.forwarding)
        assert [entry.rpartition(b"|")[0] for entry in entries.values()] == [target.encode()]


def test_what_is_kept_away_from_its_home_is_found_by_its_override_without_any_forwarding(
    fleet_config: FleetFactory,
) -> None:
    options = {**OPTIONS, "enable_read_forwarding": False}
    fleet_config({node: {} for node in NODES}, options=options, fleet={"locator": "crush"})
    home = home_of("k")
    other = next(node for node in NODES if node != home)
    fleet = fleet_config(
        {node: {"k": SIZE} if node == home else {} for node in NODES}, options=options, fleet={"locator": "crush"}
    )
    client = Rebalancer()
    client.adopt()
    assert (client.locate("k"), client.locate("k").via) == (home, "crush")
    engine = Engine()
    carry(engine, ("k", home, other))
    assert (client.locate("k"), client.locate("k").via) == (other, "override")
    assert (fleet.roots[other] / "k").read_bytes() == made_up("k", SIZE)
    assert engine.context.connection.hgetall(engine.context.keys.forwarding) == {}
    carry(engine, ("k", other, home))
    assert client.locate("k") == home


def test_the_command_forgets_all_that_leads_to_a_node(
    fleet_config: FleetFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet_config({"n1": {"k": SIZE, "l": SIZE}, "n2": {}}, options=OPTIONS)
    Rebalancer().adopt()
    carry(Engine(), ("k", "n1", "n2"), ("l", "n1", "n2"))
    assert run(["nodes", "--forget", "n2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"node_id": "n2", "forgotten": 2}
    assert (Rebalancer().locate("k"), Rebalancer().locate("k").via) == ("n2", "survey")
    assert run(["nodes", "--forget", "n2"]) == 0
    assert capsys.readouterr().out == "0 forwardings and locations led to n2\n"


# -- a key that moves while it is looked for --------------------------------------------------------------------------
@pytest.mark.parametrize("locator", ["union", "crush", "catalogue"])
def test_a_key_that_moves_behind_whoever_looks_for_it_is_looked_for_again(
    fleet_config: FleetFactory, locator: str
) -> None:
    fleet_config({node: {} for node in NODES}, options=OPTIONS, fleet={"locator": locator})
    first = home_of("k")
    holder = next(node for node in NODES if node != first)
    fleet_config(
        {node: {"k": SIZE} if node == holder else {} for node in NODES}, options=OPTIONS, fleet={"locator": locator}
    )
    client = Rebalancer()
    client.adopt()
    engine = Engine()
    looked: list[str] = []

    def look(node_id: str) -> Any:
        found = engine.context.driver(node_id).stat("k")
        looked.append(node_id)
        if len(looked) == 1:  # it comes where we have just been
            carry(engine, ("k", holder, node_id))
        return found

    _, found, _ = client._locator.find("k", look)
    assert looked[0] == found.node_id == first
    assert looked.count(first) == 2


def test_a_key_that_is_nowhere_is_looked_for_once_while_nothing_moves(fleet_config: FleetFactory) -> None:
    fleet_config({node: {} for node in NODES}, options=OPTIONS)
    client = Rebalancer()
    client.adopt()
    looked: list[str] = []
    with pytest.raises(ObjectNotFound):
        client._locator.find("k", looked.append)
    assert sorted(looked) == list(NODES)


# -- what is written --------------------------------------------------------------------------------------------------
@pytest.fixture(params=["union", "crush", "catalogue", "host"])
def nodes(
    fleet_config: FleetFactory, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Fleet:
    """Three empty nodes."""
    service = {"locator": request.param}
    if request.param == "host":
        host.install(tmp_path, monkeypatch)
        service = host.HOSTED
    made = fleet_config({node: {} for node in NODES}, options=OPTIONS, fleet=service)
    Rebalancer().adopt()
    return made


def test_new_objects_are_written_where_crush_puts_them_and_known_objects_where_they_are(nodes: Fleet) -> None:
    fs = fsspec.filesystem("fleet")
    keys = [f"new/{number}" for number in range(24)]
    for key in keys:
        fs.pipe_file(f"test/{key}", key.encode())
    where = {key: [node for node, root in nodes.roots.items() if (root / key).exists()] for key in keys}
    assert where == {key: [home_of(key)] for key in keys}
    assert {node for places in where.values() for node in places} == set(NODES)
    kept = keys[0]
    away = next(node for node in NODES if node != where[kept][0])
    engine = Engine()
    engine.start([move(kept, where[kept][0], away, len(kept))])
    assert engine.finish().completed_moves == 1
    engine.cleanup(later_ms=10**9)
    fs.pipe_file(f"test/{kept}", b"again")
    assert [node for node, root in nodes.roots.items() if (root / kept).exists()] == [away]
    assert fs.cat_file(f"test/{kept}") == b"again"
