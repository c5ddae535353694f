"""Messages carry ids, never power (invariant 13): what lies in the queues names no URL, path or credential."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.arena import QUEUES, context_of, objects, rebalancer_of
from tests.support.fleets import NodeSpec

if TYPE_CHECKING:
    import redis

    from rebalance_tasks import Rebalancer
    from tests.conftest import FleetFactory

pytestmark = pytest.mark.integration

SECRET = "hunter2-do-not-tell"  # noqa: S105  no secret
#: Runs the monitor as a worker does that got these headers and arguments; tells its answer, and which groups it counted.
MONITOR = """
import json, sys
import rebalance_tasks.celery
from rebalance_tasks import tasks
asked = []
tasks.lifecycle.finish_group = lambda context, job_id, group_id: bool(asked.append(group_id) or True)
tasks.monitor.push_request(**json.loads(sys.argv[1]))
print(json.dumps([tasks.monitor.run(**json.loads(sys.argv[2])), asked]))
"""
#: What a message to one of our tasks may say.
ALLOWED = {"job_id", "group_id", "plan_id", "fleet", "force"}


def captured(client: redis.Redis) -> list[dict[str, Any]]:
    """Every message that waits, taken apart: its kwargs, and all of its text, also what is base64 in it."""
    found = []
    for queue in QUEUES:
        for raw in client.lrange(queue, 0, -1):
            message = json.loads(raw)
            body = base64.b64decode(message["body"]).decode()
            args, kwargs, embed = json.loads(body)
            found.append(
                {"kwargs": kwargs, "args": args, "embed": embed, "headers": message["headers"], "text": str(raw) + body}
            )
    return found


def signatures(embed: Any) -> list[dict[str, Any]]:
    """All tasks that a message carries on: its chain, its chord's body, callbacks and errbacks."""
    found = []
    if isinstance(embed, dict):
        if "task" in embed and "kwargs" in embed:
            found.append(embed)
        for value in embed.values():
            found += signatures(value)
    elif isinstance(embed, list):
        for value in embed:
            found += signatures(value)
    return found


@pytest.fixture
def rebalancer(fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch) -> Rebalancer:
    """No worker runs, so that what is published stays where it can be read."""
    full = NodeSpec(objects(30, 1000), 40_000, {"storage_options": {"password": SECRET}})
    return rebalancer_of(fleet_config({"a": full, "b": NodeSpec({}, 40_000), "c": NodeSpec({}, 40_000)}))


def test_no_message_names_a_url_a_path_or_a_credential(rebalancer: Rebalancer, redis_client: redis.Redis) -> None:
    result = rebalancer.check()
    job = rebalancer.start(result.plan_id or "")
    context = context_of(rebalancer)
    context.messenger.publish_finalize(job.job_id)
    messages = captured(redis_client)
    tasks = {message["headers"]["task"] for message in messages}
    assert tasks == {"rebalance.start", "rebalance.migrate", "rebalance.finalize"}
    nested = {signature["task"] for message in messages for signature in signatures(message["embed"])}
    assert nested == {"rebalance.monitor", "rebalance.finalize"}
    roots = [node.url for node in rebalancer.settings.nodes]
    forbidden = [SECRET, "://", rebalancer.settings.redis_url, *roots, *(url.removeprefix("file://") for url in roots)]
    forbidden += list(objects(30, 1000))
    for message in messages:
        assert message["args"] == []
        assert set(message["kwargs"]) <= ALLOWED
        for signature in signatures(message["embed"]):
            assert signature["task"].startswith("rebalance.")
            assert set(signature["kwargs"]) <= ALLOWED
            assert signature["args"] in ([], ())
        assert [word for word in forbidden if word in message["text"]] == []


def test_a_group_is_one_header_whose_chain_and_chord_lead_to_finalize(
    rebalancer: Rebalancer, redis_client: redis.Redis
) -> None:
    job = rebalancer.start(rebalancer.plan())
    messages = captured(redis_client)
    assert [message["headers"]["task"] for message in messages] == ["rebalance.migrate"] * job.groups_total
    for message in messages:
        assert message["kwargs"]["fleet"] == "test"
        [monitor] = message["embed"]["chain"]
        assert monitor["task"] == "rebalance.monitor"
        body = monitor["options"]["chord"]
        assert body["task"] == "rebalance.finalize"
        assert [errback["task"] for errback in body["options"]["link_error"]] == ["rebalance.finalize"]


@pytest.mark.parametrize("counted", [True, False])
def test_a_monitor_asks_redis_only_of_groups_that_nobody_has_counted(
    rebalancer: Rebalancer, redis_client: redis.Redis, *, counted: bool
) -> None:
    job = rebalancer.start(rebalancer.plan())
    context_of(rebalancer).messenger.publish_monitor(job.job_id, "g0000", counted=counted)
    [message] = [one for one in captured(redis_client) if one["headers"]["task"] == "rebalance.monitor"]
    # In a process of its own: tasks that are imported here would be those of other tests' apps, too.
    told = subprocess.run(
        [sys.executable, "-c", MONITOR, json.dumps(message["headers"]), json.dumps(message["kwargs"])],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(told.stdout.splitlines()[-1]) == [{"group_id": "g0000"}, [] if counted else ["g0000"]]


def test_a_start_that_is_published_twice_has_one_id(rebalancer: Rebalancer, redis_client: redis.Redis) -> None:
    result = rebalancer.check()
    [start] = captured(redis_client)
    assert start["kwargs"] == {"plan_id": result.plan_id, "job_id": f"rebal-{result.plan_id}", "fleet": "test"}


def test_no_message_waits_for_its_time_to_come(rebalancer: Rebalancer, redis_client: redis.Redis) -> None:
    """An ETA message sits in one worker's memory and is redelivered by the visibility timeout: we send none."""
    job = rebalancer.start(rebalancer.plan())
    rebalancer.pause(job.job_id)
    rebalancer.resume(job.job_id)
    assert [message["headers"]["eta"] for message in captured(redis_client)] == [None] * job.groups_total
