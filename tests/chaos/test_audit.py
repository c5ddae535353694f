"""The judge of the chaos rounds can find: each kind of damage is done once, and named."""

from __future__ import annotations

import ast
import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import audit, objects, strangers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis

pytestmark = pytest.mark.integration

PREFIX = "rebalance:{test}:"
KEY = "a/one"


class World:
    """Two nodes, two objects, and a job that has moved one of them."""

    def __init__(self, folder: Path, client: redis.Redis) -> None:
        self.client = client
        self.roots = {node: folder / node for node in ("n1", "n2")}
        for root in self.roots.values():
            (root / ".rebalance/trash").mkdir(parents=True)
            (root / ".rebalance/tmp").mkdir()
        self.log = strangers.WriteLog(folder / "written.jsonl")
        strangers.create(self.log, self.roots["n1"], "n1", KEY, 100)
        strangers.create(self.log, self.roots["n1"], "n1", "a/two", 100)
        (self.roots["n2"] / "a").mkdir()
        self.at(1, KEY).rename(self.at(2, KEY))
        moves = b"0 1\n" + zlib.compress(json.dumps([[KEY, 100]]).encode())
        client.hset(f"{PREFIX}job:j1", mapping={"status": "completed", "completed": 1, "failed": 0, "skipped": 0})
        client.set(f"{PREFIX}job:j1:states", "c")
        client.hset(f"{PREFIX}job:j1:groups", "g0", json.dumps({"source": "n1", "target": "n2"}))
        client.hset(f"{PREFIX}job:j1:moves", "g0:0", moves)
        client.hset(f"{PREFIX}forwarding", KEY, "n2|99999999999999")
        self.answers: dict[str, str | None] = {KEY: "n2", "a/two": "n1"}

    def at(self, node: int, key: str) -> Path:
        return self.roots[f"n{node}"] / key

    def append(self, path: Path, key: str, *, stood: bool = True, write: bool = True) -> None:
        number = self.log.next_number()
        if write:
            with path.open("ab") as file:
                file.write(objects.token(number))
        self.log.note(strangers.Event(0, "append", self.log.oids[key], "n1", key, token=number, stood=stood))

    def problems(self, job_ids: list[str] | None = None) -> list[str]:
        job_ids = job_ids or ["j1"]
        return audit.audit(self.roots, self.log, self.client, PREFIX, job_ids=job_ids, answers=self.answers)


@pytest.fixture
def world(tmp_path: Path, redis_client: redis.Redis) -> Iterator[World]:
    made = World(tmp_path, redis_client)
    yield made
    made.log.close()


def twice(world: World) -> None:
    world.at(1, KEY).write_bytes(world.at(2, KEY).read_bytes())


def torn(world: World) -> None:
    content = world.at(2, KEY).read_bytes()
    world.at(2, KEY).write_bytes(content[:-1])


def older(world: World) -> None:
    """What a stranger wrote is in the trash only."""
    trash = world.at(1, ".rebalance/trash/j1.0")
    trash.write_bytes(world.at(2, KEY).read_bytes())
    world.append(trash, KEY)


DAMAGE: dict[str, Callable[[World], object]] = {
    "lost:": lambda world: world.at(2, KEY).unlink(),
    "on several nodes:": twice,
    "torn:": torn,
    "swapped:": lambda world: world.at(2, KEY).write_bytes(world.at(1, "a/two").read_bytes()),
    "appeared:": lambda world: world.at(2, "a/three").write_bytes(b"?"),
    "an append is lost:": older,
    "a racing append is nowhere:": lambda world: world.append(world.at(2, KEY), KEY, stood=False, write=False),
    "left over:": lambda world: world.at(2, ".rebalance/tmp/j1.0").write_bytes(b""),
    "j1 is running": lambda world: world.client.hset(f"{PREFIX}job:j1", "status", "running"),
    "j1: terminal with open moves": lambda world: world.client.set(f"{PREFIX}job:j1:states", "cl"),
    "j1: counts": lambda world: world.client.hset(f"{PREFIX}job:j1", "completed", 2),
    "j1: causes": lambda world: world.client.hset(f"{PREFIX}job:j1:causes", "conflict", 1),
    "j1.0: a/one completed to n2": lambda world: world.at(2, KEY).rename(world.at(1, KEY)),
    "left in Redis: permits": lambda world: world.client.hset(f"{PREFIX}permits", "j1/g0", 1),
    "still reserved:": lambda world: world.client.hset(f"{PREFIX}reserved:n2", "j1/g0/0", 5),
    "awaiting release": lambda world: world.client.hset(f"{PREFIX}awaiting", "n1", 5),
    "forwarding of a/one": lambda world: world.client.hset(f"{PREFIX}forwarding", KEY, "n1|99999999999999"),
    "locate(a/one)": lambda world: world.answers.update({KEY: None}),
}


@pytest.mark.parametrize("module", ["audit", "checker", "objects", "strangers"])
def test_who_judges_imports_nothing_of_what_is_judged(module: str) -> None:
    tree = ast.parse((Path(__file__).parents[1] / "support" / f"{module}.py").read_text(encoding="utf-8"))
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not [name for name in imported if name.startswith("rebalance_tasks")]
    assert {name for name in imported if name.startswith("tests")} <= {"tests.support", "tests.support.strangers"}


def test_a_world_in_order_has_no_problems(world: World) -> None:
    world.append(world.at(2, KEY), KEY)
    assert world.problems() == []


@pytest.mark.parametrize("named", DAMAGE)
def test_damage_is_found_and_named(world: World, named: str) -> None:
    DAMAGE[named](world)
    assert any(problem.startswith(named) for problem in world.problems()), world.problems()


def test_two_copies_to_which_strangers_wrote_are_both_right(world: World) -> None:
    twice(world)
    for node in (1, 2):
        world.append(world.at(node, KEY), KEY)
    assert not any(problem.startswith("on several nodes") for problem in world.problems())


@pytest.mark.parametrize("written", [True, False])
def test_a_completed_object_may_be_elsewhere_only_where_somebody_wrote_to_the_copy_of_a_later_move(
    world: World, written: bool
) -> None:
    """Redis forgot that the second job took it back to n1, where it was written to since."""
    moves = b"0 1\n" + zlib.compress(json.dumps([[KEY, 100]]).encode())
    world.client.hset(f"{PREFIX}job:j2", mapping={"status": "cancelled", "completed": 0, "failed": 0, "skipped": 1})
    world.client.set(f"{PREFIX}job:j2:states", "s")
    world.client.hset(f"{PREFIX}job:j2:causes", "cancelled", 1)
    world.client.hset(f"{PREFIX}job:j2:groups", "g0", json.dumps({"source": "n2", "target": "n1"}))
    world.client.hset(f"{PREFIX}job:j2:moves", "g0:0", moves)
    world.at(2, KEY).rename(world.at(1, KEY))
    world.append(world.at(1, KEY), KEY, stood=written)
    shown = world.problems(job_ids=["j1", "j2"])
    assert any("completed to n2" in problem for problem in shown) is not written


def test_what_a_stranger_deleted_is_not_missed(world: World) -> None:
    world.log.note(strangers.Event(0, "delete", world.log.oids[KEY], "n2", KEY))
    world.at(2, KEY).unlink()
    assert world.problems() == []


@pytest.mark.parametrize("cut", [1, 11])
def test_an_object_that_is_being_appended_to_is_whole_for_a_reader_only(cut: int) -> None:
    content = objects.made("o000001", 50) + objects.token(1) + objects.token(2)
    assert objects.read(content) == objects.Content("o000001", (1, 2))
    assert objects.read(content[:-cut]) is None
    assert objects.read(content[:-cut], growing=True) == objects.Content("o000001", (1,))
    assert objects.read(b"x" + content, growing=True) is None
