"""Each finding of the doctor has a test that causes it, and says what to do next."""

from __future__ import annotations

import re
import shutil
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from rebalance_tasks.control import fleetwide
from rebalance_tasks.control.catalogue import Catalogue
from rebalance_tasks.control.check import run_check
from rebalance_tasks.control.cleanup import run_cleanup
from rebalance_tasks.control.doctor import MOST_SKEW_S, examine, examine_access, examine_nodes
from rebalance_tasks.control.examining.redis import judge_durability
from rebalance_tasks.control.examining.settings import contradictions
from rebalance_tasks.control.survey import NodeReport, adopt
from rebalance_tasks.control.sweep import STUCK_AFTER_S, run_sweep
from rebalance_tasks.core.models import NodeDescriptor, NodeState
from rebalance_tasks.core.options import RebalancerOptions
from rebalance_tasks.settings import Settings
from rebalance_tasks.store.connection import Connection, connect
from rebalance_tasks.store.errors import StateForbidden
from rebalance_tasks.store.presence import Presence
from rebalance_tasks.store.records import TrashRecord
from tests.support.engine import Engine, moves_between
from tests.support.hooks import SIZES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.control.examining.findings import Finding
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration

SERVED: Final = {"w@host": ["rebalance.control", "rebalance.data"]}
PAGE: Final = Path(__file__).parents[2] / "docs/reference/doctor.md"


def look(context: FleetContext, serving: Mapping[str, list[str]] = SERVED) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(context, lambda: serving)}


@pytest.fixture
def well(engine: Engine) -> FleetContext:
    """A fleet in which all is well."""
    context = engine.context
    adopt(context)
    context.presence.publish(Presence("w@host", context.settings.digest(), context.connection.now_ms()))
    run_check(context)
    run_sweep(context)
    run_cleanup(context)
    return context


def replaced(context: FleetContext, **settings: Any) -> FleetContext:
    object.__setattr__(context, "settings", context.settings.model_copy(update=settings))
    return context


def assert_told(found: dict[str, Finding], name: str, verdict: str, words: str) -> None:
    finding = found[name]
    assert finding.verdict == verdict, finding
    assert re.search(words, finding.detail), finding
    assert finding.next_step, finding


@pytest.mark.parametrize(("queue", "verdict"), [("", "fail"), ("h2", "warn")])
def test_a_disk_of_another_host_is_no_failure_here(queue: str, verdict: str) -> None:
    node = NodeDescriptor(node_id="far", url="file:///srv/far", queue=queue)
    (found,) = examine_nodes([NodeReport(node, "missing", "no such directory")])
    assert found.verdict == verdict
    assert ("rebalance.data.h2" in found.detail) == bool(queue)


def test_of_a_fleet_that_is_well_nothing_bad_is_said(well: FleetContext) -> None:
    assert [finding for finding in look(well).values() if finding.verdict != "ok"] == []


def test_the_page_lists_every_finding(well: FleetContext) -> None:
    fleetwide.pause_all(well)
    fleetwide.pause_node(well, "n1")
    object.__setattr__(well, "catalogue", Catalogue("provider:absent", []))
    names = {finding.partition(" ")[0] for finding in look(well)} | {"job", "access"}
    rows = re.findall(r"^\| `(\w+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(names)


# -- Redis ----------------------------------------------------------------------------------------------------------------
def test_redis_away_is_told_without_its_password_and_nothing_else_is_looked_at(well: FleetContext) -> None:
    url = "redis://user:hunter22@127.0.0.1:1/0"
    replaced(well, redis_url=url)
    object.__setattr__(well, "connection", Connection(connect(url)))
    found = look(well)
    assert list(found) == ["redis"]
    assert_told(found, "redis", "fail", "does not answer")
    assert "hunter22" not in str(found)


def test_eviction_and_a_missing_append_only_file_are_told(well: FleetContext) -> None:
    client = well.connection.client
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("appendonly", "no")
    try:
        found = look(well)
    finally:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("appendonly", "yes")
    assert_told(found, "eviction", "fail", "allkeys-lru")
    assert_told(found, "durability", "warn", "append-only file is off")


def test_a_failing_append_only_file_is_told() -> None:
    finding = judge_durability({"aof_enabled": 1, "aof_last_write_status": "err"})
    assert (finding.verdict, bool(finding.next_step)) == ("fail", True)


@pytest.mark.parametrize("key", ["_kombu.binding.billing", "celery", "bull:mail:wait", "session:1"])
def test_neighbours_on_the_brokers_database_are_told(well: FleetContext, key: str) -> None:
    well.connection.client.sadd(key, "x")
    assert_told(look(well), "neighbours", "warn", re.escape(key.partition(":")[0]))
    prefixed = replaced(well, message_prefix="acme")
    assert look(prefixed)["neighbours"].verdict == "ok"


@pytest.mark.parametrize(
    "key",
    [
        "rebalance.data",
        "rebalance.control\x06\x163",
        "_kombu.binding.rebalance.data",
        "_kombu.binding_permanent.rebalance.control",
        "_kombu.binding.celery.pidbox",
        "_kombu.binding.reply.celery.pidbox",
        "_kombu.binding.celeryev",
        "0b2c.reply.celery.pidbox",
        "celery-task-meta-1",
        "unacked_mutex",
        "rebalance:{other}:jobs",
    ],
)
def test_what_celery_and_other_fleets_keep_there_is_no_neighbour(well: FleetContext, key: str) -> None:
    well.connection.client.sadd(key, "x")
    assert look(well)["neighbours"].verdict == "ok"


def test_a_user_who_may_not_ask_is_told_which_right_is_missing(
    well: FleetContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise StateForbidden

    monkeypatch.setattr(type(well.connection.client), "info", forbidden)
    assert_told(look(well), "durability", "warn", "may not ask")


# -- workers and beat -----------------------------------------------------------------------------------------------------
def test_no_worker_and_a_queue_that_nobody_serves_are_told(well: FleetContext) -> None:
    assert_told(look(well, {}), "workers", "fail", "none answers")
    found = look(well, {"w@host": ["rebalance.control"]})
    assert_told(found, "queue rebalance.data", "fail", "no worker serves it")


def test_the_queue_of_a_node_that_nobody_serves_is_told_with_the_node(well: FleetContext) -> None:
    nodes = tuple(node.model_copy(update={"queue": f"at-{node.node_id}"}) for node in well.settings.nodes)
    replaced(well, nodes=nodes)
    found = look(well, {"w@host": [*SERVED["w@host"], "rebalance.data.at-n1"]})
    assert found["queue rebalance.data.at-n1"].verdict == "ok"
    assert_told(found, "queue rebalance.data.at-n2", "fail", r"the queue of n2")


def test_digests_that_differ_are_told_with_the_worker(well: FleetContext) -> None:
    well.presence.publish(Presence("odd@host", "0123456789abcdef", well.connection.now_ms()))
    assert_told(look(well), "configuration", "fail", "odd@host")


def test_a_clock_that_differs_is_told(well: FleetContext, monkeypatch: pytest.MonkeyPatch) -> None:
    now_ms = well.connection.now_ms()
    well.presence.publish(Presence("late@host", well.settings.digest(), now_ms, -60_000))
    assert_told(look(well), "clock", "warn", r"late@host by 60 s")
    here = time.time()
    monkeypatch.setattr(time, "time", lambda: here + MOST_SKEW_S + 30)
    assert_told(look(well), "clock", "warn", "this machine by 3")


def test_a_silent_beat_is_told(engine: Engine, well: FleetContext) -> None:
    now_ms = well.connection.now_ms()
    well.fleet.record_chore("sweep", {}, now_ms=now_ms - 300_000)
    well.fleet.record_chore("cleanup", {}, now_ms=now_ms - 3_600_000)
    found = look(well)
    assert_told(found, "sweep", "warn", "ran 5 min ago")
    assert_told(found, "cleanup", "warn", "ran 60 min ago")
    well.connection.client.delete(well.keys.info, well.keys.checks)
    assert_told(look(well), "sweep", "warn", "never ran")
    assert_told(look(well), "check", "warn", "no check has run yet")


def test_checks_that_stay_away_are_told(well: FleetContext) -> None:
    options = well.settings.options.model_copy(update={"check_interval": timedelta(0)})
    replaced(well, options=options)
    assert_told(look(well), "check", "warn", "last 0 s ago")


# -- the job, nodes, trash ------------------------------------------------------------------------------------------------
def test_a_job_that_stands_still_is_told(engine: Engine, well: FleetContext) -> None:
    engine.start(moves_between("n1", "n2", SIZES))
    assert look(well)["job"].verdict == "ok"
    past_ms = well.connection.now_ms() - STUCK_AFTER_S * 1000
    well.connection.hset(well.keys.job("j1").base, {"status": "running", "mark_ms": past_ms})
    assert_told(look(well), "job", "fail", "j1 has not come on for 10 min")


def test_a_paused_fleet_and_a_held_node_are_told(well: FleetContext) -> None:
    fleetwide.pause_all(well)
    well.holds.missing("n2")
    found = look(well)
    assert_told(found, "paused", "warn", "global")
    assert_told(found, "held n2", "warn", "missing")


def test_nodes_that_are_missing_unwritable_unadopted_or_left_alone_are_told(well: FleetContext, fleet: Fleet) -> None:
    well.fleet.set_node_state("n1", NodeState.MAINTENANCE)
    shutil.move(fleet.roots["n2"], fleet.roots["n2"].with_suffix(".gone"))
    found = look(well)
    assert_told(found, "node n1", "warn", "maintenance")
    assert_told(found, "node n2", "fail", "missing")
    well.fleet.forget_node_state("n1")
    well.connection.client.delete(well.keys.adopted)
    shutil.rmtree(fleet.roots["n1"] / ".rebalance")
    assert_told(look(well), "node n1", "warn", "no node-id yet")
    shutil.rmtree(fleet.roots["n1"])
    fleet.roots["n1"].write_text("a file where the root should be")
    assert_told(look(well), "node n1", "fail", "missing|not_writable")


@pytest.mark.parametrize(("direct", "way"), [(True, "around"), (False, "through"), (None, None)])
def test_how_large_copies_reach_a_node_is_told_where_it_is_known(direct: bool | None, way: str | None) -> None:
    node = NodeDescriptor(node_id="n", url="/srv/n")
    (found,) = examine_nodes([NodeReport(node, "ok", direct=direct)])
    assert found.detail == ("/srv/n" if way is None else f"/srv/n; large copies go {way} the page cache")


def test_a_mount_on_which_reading_leaves_no_trace_is_told_where_access_times_count(well: FleetContext) -> None:
    node = NodeDescriptor(node_id="n", url="/srv/n")
    for shows, found in ((True, 0), (None, 0), (False, 1)):
        assert len(examine_access([NodeReport(node, "ok", shows_access=shows)])) == found
    seen = NodeReport(node, "ok", shows_access=False)
    assert_told({one.name: one for one in examine_access([seen])}, "access n", "warn", "noatime")
    assert not [name for name in look(well) if name.startswith("access")]


@pytest.mark.parametrize(("from_here", "verdict"), [(True, "warn"), (False, "fail")])
def test_a_disk_that_its_own_workers_miss_is_a_failure(from_here: bool, verdict: str) -> None:
    node = NodeDescriptor(node_id="far", url="file:///srv/far", queue="h2")
    (found,) = examine_nodes([NodeReport(node, "missing", "no such directory", from_here=from_here)])
    assert found.verdict == verdict


def test_a_fleet_without_nodes_is_told(fleet_config: FleetFactory) -> None:
    fleet_config({})
    assert_told(look(Engine().context), "nodes", "fail", "none is configured")


def test_trash_that_piles_up_is_told(well: FleetContext) -> None:
    record = TrashRecord(node="n1", key="k", size=7, fingerprint={"size_bytes": 7, "mtime_ns": 1})
    well.trash.add("j0.0", record, delay_ms=-3_600_000)
    assert_told(look(well), "trash", "warn", r"7 bytes .* 1 records")


# -- settings -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_moves_per_cycle": 0}, "max_moves_per_cycle is 0"),
        ({"max_egress_bytes_per_cycle": 0}, "max_egress_bytes_per_cycle is 0"),
        ({"gravity_protection_threshold": 0.0}, "every object is protected"),
        ({"imbalance_threshold": 0.0}, "every check plans"),
        ({"max_cost_per_day": 1, "max_cost_per_cycle": 2}, "max_cost_per_day 1"),
        ({"max_concurrent_per_node": 9}, "it limits nothing"),
        ({"quiet_hours": (1, 0)}, "leave 1 h a day"),
        ({"job_deadline": "1m"}, "job_deadline is shorter"),
    ],
)
def test_options_that_contradict_each_other_are_told(options: dict[str, Any], words: str) -> None:
    (finding,) = contradictions(Settings(options=RebalancerOptions.model_validate(options)))
    assert (finding.name, finding.verdict) == ("settings", "warn")
    assert words in finding.detail
    assert finding.next_step


def test_nodes_that_contradict_the_settings_are_told() -> None:
    nodes = tuple(NodeDescriptor(node_id=f"n{n}", url=f"file:///{n}", weight=n) for n in range(2))
    told = [finding.detail for finding in contradictions(Settings(nodes=nodes, locator="crush"))]
    assert told == ["node n0 has weight 0 and is active: placement gives it nothing"]
    told = [finding.detail for finding in contradictions(Settings(nodes=nodes[1:]))]
    assert told == ["pool 'default' has one node: there is nobody to exchange objects with"]


def test_what_cannot_be_looked_at_is_a_finding(well: FleetContext) -> None:
    def broken() -> dict[str, list[str]]:
        msg = "the broker is away"
        raise ConnectionError(msg)

    found = {finding.name: finding for finding in examine(well, broken)}
    assert_told(found, "workers", "fail", "the broker is away")
    assert found["trash"].verdict == "ok"
