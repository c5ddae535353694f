"""Two fleets on one Redis: each with a user of its own, who sees neither keys nor messages of the other's."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks import Rebalancer
from rebalance_tasks.settings import load_settings
from rebalance_tasks.store.connection import connect
from rebalance_tasks.store.errors import StateForbidden
from tests.support.arena import JOB_TIMEOUT_S, context_of, wait_for
from tests.support.checker import check, record
from tests.support.fleets import NodeSpec, write_fleet
from tests.support.servers import FragileServer
from tests.support.wait import wait_until
from tests.support.workers import ProcessFactory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "many-hosts.md"
FLEETS = ("archive", "media")
SIZE = 20_000


def documented_user(fleet: str) -> list[str]:
    """The rights of a fleet's user, as the page gives them for the fleet `archive`."""
    found = re.search(r"^ACL SETUSER archive (.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1].replace("PASSWORD", f"pw-{fleet}").replace("archive", fleet).split()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FragileServer]:
    with FragileServer(tmp_path / "redis") as made, made.client() as admin:
        for fleet in FLEETS:
            admin.execute_command("ACL", "SETUSER", fleet, "reset", *documented_user(fleet))
        yield made


def url(server: FragileServer, fleet: str) -> str:
    return f"redis://{fleet}:pw-{fleet}@127.0.0.1:{server.port}/0"


@pytest.fixture
def fleets(server: FragileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Fleet]:
    monkeypatch.delenv("REBALANCE_CONFIG", raising=False)
    nodes = {"a": NodeSpec({f"o/{n:02}": SIZE for n in range(12)}, SIZE * 24), "b": NodeSpec({}, SIZE * 24)}
    made = {}
    for fleet in FLEETS:
        (tmp_path / fleet).mkdir()
        table = {"name": fleet, "message_prefix": f"rebalance-{fleet}"}
        made[fleet] = write_fleet(tmp_path / fleet, redis_url=url(server, fleet), nodes=nodes, fleet=table)
    return made


def test_two_fleets_work_side_by_side_and_each_knows_of_itself_alone(
    server: FragileServer, fleets: dict[str, Fleet], tmp_path: Path
) -> None:
    with ExitStack() as stack:
        clients: dict[str, Rebalancer] = {}
        written = {}
        for name, fleet in fleets.items():
            factory = ProcessFactory(tmp_path / name, fleet.redis_url)
            stack.callback(factory.stop_all)
            factory.worker(wait=False, concurrency=1, env={"REBALANCE_CONFIG": str(fleet.config)})
            clients[name] = Rebalancer(load_settings(fleet.config, environ={}))
            written[name] = record(fleet.roots)
        wait_until(lambda: all(client.workers() for client in clients.values()), JOB_TIMEOUT_S, "both have a worker")
        for client in clients.values():
            client.start(client.plan(), "j1")
        for name, client in clients.items():
            job = wait_for(client, "j1")  # the same id: nothing of the two meets
            assert job.completed_moves == job.total_moves > 0
            check(fleets[name].roots, written[name], job)
            assert len(client.workers()) == 1
            samples = [sample for metric in client.metrics_registry().collect() for sample in metric.samples]
            assert {sample.labels["fleet"] for sample in samples} == {name}
        with server.client() as admin:
            assert [entry for entry in admin.acl_log() if entry["username"] in FLEETS] == []
            keys = set(admin.scan_iter())
        assert {key for key in keys if not any(mine(key, fleet) for fleet in FLEETS)} == set()


def test_messages_that_wait_below_a_prefix_are_counted(fleets: dict[str, Fleet]) -> None:
    clients = {name: Rebalancer(load_settings(fleet.config, environ={})) for name, fleet in fleets.items()}
    for _ in range(3):
        context_of(clients["archive"]).messenger.publish_finalize("j1")

    def waiting(client: Rebalancer) -> float:
        metrics = {metric.name: metric for metric in client.metrics_registry().collect()}
        depths = {s.labels["queue"]: s.value for s in metrics["rebalance_queue_messages"].samples}
        return depths["rebalance.control"]

    assert [waiting(clients[name]) for name in FLEETS] == [3, 0]


def mine(key: str, fleet: str) -> bool:
    return key.startswith((f"rebalance:{{{fleet}}}:", f"rebalance-{fleet}:"))


def test_a_fleet_reads_and_writes_nothing_of_another(server: FragileServer, fleets: dict[str, Fleet]) -> None:
    archive = context_of(Rebalancer(load_settings(fleets["archive"].config, environ={})))
    archive.fleet.set_limit(2)
    media = connect(url(server, "media"))
    for command in (
        ("HGETALL", archive.keys.info),
        ("HSET", archive.keys.info, "epoch", "7"),
        ("LRANGE", "rebalance-archive:rebalance.control", "0", "-1"),
        ("LPUSH", "rebalance-archive:rebalance.data", "{}"),
        ("PUBLISH", "rebalance-archive:/0.celery.pidbox", "{}"),
        ("KEYS", "*"),
        ("ACL", "LIST"),
    ):
        with pytest.raises(StateForbidden):
            media.execute_command(*command)
    with pytest.raises(StateForbidden):
        media.eval("return redis.call('HGET', KEYS[1], 'epoch')", 1, archive.keys.info)


def test_a_fleet_whose_configuration_names_another_fleets_keys_is_refused(server: FragileServer) -> None:
    """The name alone decides: a process that is set up for `archive` with the user of `media` reaches nothing."""
    stray = Rebalancer(
        load_settings(environ={"REBALANCE_FLEET": "archive", "REBALANCE_REDIS_URL": url(server, "media")})
    )
    with pytest.raises(StateForbidden, match="~rebalance:"):
        stray.jobs()
