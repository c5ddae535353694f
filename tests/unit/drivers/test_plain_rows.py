"""Rows do for plain objects what the driver does, and leave every other one where it was, with nothing left behind."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.core.placement.kernels import compiled_kernels
from rebalance_tasks.drivers.base import FreeOutcome
from rebalance_tasks.drivers.local import compiled
from rebalance_tasks.drivers.local import plain_rows as rows_module
from rebalance_tasks.drivers.local.burst import DESCRIPTORS, MOST_BYTES
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.drivers.local.files import fingerprint_of
from rebalance_tasks.drivers.local.linux import PORTABLE, native
from rebalance_tasks.drivers.registry import plain_rows
from tests.unit.drivers.test_local_burst import BODY, ODD, descriptors, make_odd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebalance_tasks.drivers.local.plain_rows import PlainRows

if native().syncfs is None or compiled_kernels("auto", worth_loading=True) is None:
    pytest.skip("no syncfs or no numba here, so there are no rows", allow_module_level=True)

MTIME_NS = 1_500_000_000_123_456_789


class Pair:
    """Two roots, and rows between them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.source, self.target = (LocalDriver(name, str(folder / name)) for name in ("a", "b"))
        for driver in (self.source, self.target):
            (folder / driver.node_id).mkdir()
            driver.adopt()
        self.spent: list[int] = []

    def path(self, key: str, *, target: bool = False) -> Path:
        return self._folder / ("b" if target else "a") / key

    def write(self, key: str, body: bytes = BODY) -> Path:
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        os.utime(path, ns=(1_600_000_000_000_000_001, MTIME_NS))
        return path

    def rows(self, *keys: str, size: int | None = None, at_once: int = 64) -> PlainRows:
        """Rows for objects that were written; the first one may have been planned at another size."""
        moves = [(key, MoveId(f"m{n}"), self.path(key).lstat().st_size) for n, key in enumerate(keys)]
        if size is not None:
            moves[0] = (*moves[0][:2], size)
        chosen, rows = plain_rows(self.source, self.target, moves, rows=at_once, size_bytes=1 << 20)
        assert rows is not None
        assert chosen == list(range(len(keys)))
        return rows

    def stage(self, rows: PlainRows) -> None:
        with self.source.hold():
            rows.stage(self.spent.append, lambda _: None)

    def aside(self, rows: PlainRows, row: int) -> Path:
        """Where a copy can be found until it has its key."""
        move_id = rows.move_ids[row]
        return Path(rows.aside(move_id) or self.path(f".rebalance/tmp/{move_id}", target=True))

    def verified(self, rows: PlainRows) -> None:
        self.stage(rows)
        rows.read_back(lambda: None)

    def publish(self, rows: PlainRows) -> set[MoveId]:
        with self.source.hold(), self.target.hold() as hold:
            rows.publish(lambda: None)
        return hold.strays

    def free(self, rows: PlainRows) -> set[MoveId]:
        rows.flipped()
        with self.source.hold() as hold:
            rows.free(lambda: None)
        return hold.strays


@pytest.fixture(params=["without a name", "under a name"])
def pair(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """Two roots, whose copies lie aside in either of the two ways."""
    monkeypatch.setattr(compiled, "WORTH_LOADING_OBJECTS", 0)
    if request.param == "under a name":
        monkeypatch.setattr(rows_module, "_names_descriptors", lambda: False)
    elif not rows_module._names_descriptors():
        pytest.skip("files have names here")
    before = descriptors()
    made = Pair(tmp_path)
    yield made
    made.source.close()
    made.target.close()
    assert descriptors() <= before


def test_plain_objects_go_all_the_way_as_the_driver_would_take_them(pair: Pair) -> None:
    paths = [
        pair.write(key, body) for key, body in (("d/one", BODY), ("d/two", BODY * 9), ("three", b"3"), ("four", b"4"))
    ]
    paths[0].chmod(0o640)
    keys = ["d/one", "d/two", "three", "four"]
    with pair.rows(*keys) as rows:
        pair.verified(rows)
        assert rows.at("verified") == [0, 1, 2, 3]
        assert pair.spent == [len(BODY) * 10 + 2]
        for row, path in enumerate(paths):
            assert rows.source(row) == pair.source.stat(keys[row])
            assert rows.copy(row) == fingerprint_of(pair.aside(rows, row).stat())
            assert rows.digests[row] == xxhash.xxh3_128_hexdigest(path.read_bytes())
        sources = [rows.source(row) for row in range(4)]
        assert pair.publish(rows) == set()
        published = pair.path("d/one", target=True)
        assert published.read_bytes() == BODY
        assert stat.S_IMODE(published.stat().st_mode) == 0o640
        assert published.stat().st_mtime_ns == MTIME_NS
        assert list(pair.target.list_staged()) == []
        assert pair.free(rows) == set()
        assert rows.at("freed") == [0, 1, 2, 3]
        assert not any(path.exists() for path in paths)
        assert [pair.source.trashed(MoveId(f"m{row}")) for row in range(4)] == sources


@given(
    sizes=st.lists(st.integers(1, 5000), min_size=2, max_size=9),
    at_once=st.integers(1, 4),
    mtime_ns=st.integers(-(10**18), 4 * 10**18),
)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_their_sizes_and_times_the_copies_are_the_objects(
    tmp_path_factory: pytest.TempPathFactory, pair: Pair, sizes: list[int], at_once: int, mtime_ns: int
) -> None:
    one = Pair(tmp_path_factory.mktemp("pair"))
    bodies = {f"d/{n}": os.urandom(size) for n, size in enumerate(sizes)}
    for key, body in bodies.items():
        os.utime(one.write(key, body), ns=(mtime_ns, mtime_ns))
    with one.rows(*bodies, at_once=at_once) as rows:
        one.verified(rows)
        assert [rows.source(row) for row in range(len(sizes))] == [one.source.stat(key) for key in bodies]
        one.publish(rows)
        one.free(rows)
        assert len(rows.at("freed")) == len(sizes)
    for key, body in bodies.items():
        assert one.path(key, target=True).read_bytes() == body
        assert one.path(key, target=True).stat().st_mtime_ns == mtime_ns


@pytest.mark.parametrize("kind", [kind for kind in ODD if kind != "empty"])
def test_what_is_not_plain_is_no_row_from_the_first_step_on_and_leaves_nothing(pair: Pair, kind: str) -> None:
    size = make_odd(kind, pair.write("d/one"))
    pair.write("d/plain")
    moves = [("d/one", MoveId("m0"), size), ("d/plain", MoveId("m1"), len(BODY))]
    _, rows = plain_rows(pair.source, pair.target, moves, rows=64, size_bytes=1 << 20)
    assert rows is not None
    with rows:
        pair.stage(rows)
        assert rows.names() == ["waiting", "copied"]
        rows.give_names([0, 1])
        assert [staged for staged, *_ in pair.target.list_staged()] == ["m1"]


def test_a_copy_without_a_name_is_gone_when_nobody_gives_it_one(pair: Pair) -> None:
    for name in ("one", "two", "three"):
        pair.write(f"d/{name}")
    with pair.rows("d/one", "d/two", "d/three") as rows:
        pair.verified(rows)
        nameless = rows.aside(MoveId("m0")) is not None
        rows.give_names([1])
        assert rows.aside(MoveId("m1")) is None
        assert rows.aside(MoveId("m7")) is None
    staged = dict(pair.target.list_staged())
    assert sorted(staged) == (["m1"] if nameless else ["m0", "m1", "m2"])
    assert pair.target.staged(MoveId("m1")) == rows.copy(1)


def test_extended_attributes_are_not_left_behind(pair: Pair) -> None:
    path = pair.write("d/one")
    pair.write("d/two")
    try:
        os.setxattr(path, "user.colour", b"blue")
    except OSError:
        pytest.skip("this file system keeps no extended attributes")
    with pair.rows("d/one", "d/two") as rows:
        pair.stage(rows)
        assert rows.names() == ["waiting", "copied"]
        assert pair.target.staged(MoveId("m0")) is None


@pytest.mark.parametrize(
    "key", ["../a", "d/../b", ".rebalance/node-id", "/etc/passwd", "d//a", "d/.a", "d/a\0b", "d/ä", "d/"]
)
def test_a_key_that_is_none_or_that_is_not_plain_is_never_acted_on(pair: Pair, key: str) -> None:
    pair.write("d/one")
    moves = [(key, MoveId(f"m{n}"), 9) for n in range(2)]
    _, rows = plain_rows(pair.source, pair.target, moves, rows=64, size_bytes=1 << 20)
    if rows is not None:
        with rows:
            pair.stage(rows)
            assert rows.names() == ["waiting", "waiting"]
    assert list(pair.target.list_staged()) == []


def test_a_move_id_that_is_no_name_is_refused(pair: Pair) -> None:
    moves = [(f"d/{n}", MoveId("../../etc"), 9) for n in range(2)]
    with pytest.raises(InvalidArgument, match="move id"):
        plain_rows(pair.source, pair.target, moves, rows=64, size_bytes=1 << 20)


def test_only_small_objects_that_share_their_folder_are_rows(pair: Pair) -> None:
    sizes = {"d/a": 1, "d/b": MOST_BYTES, "d/c": MOST_BYTES + 1, "d/d": 0, "alone/e": 5}
    moves = [(key, MoveId(key[-1]), size) for key, size in sizes.items()]
    chosen, rows = plain_rows(pair.source, pair.target, moves, rows=64, size_bytes=1 << 20)
    assert chosen == [0, 1]
    assert rows is not None
    with rows:
        assert rows.keys == ["d/a", "d/b"]
    assert plain_rows(pair.source, pair.target, moves, rows=64, size_bytes=0) == ([], None)


def test_there_are_no_rows_where_the_calls_are_not_linux_own_or_machine_code_does_not_pay_yet(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves = [("d/a", MoveId("a"), 1), ("d/b", MoveId("b"), 1)]
    portable = LocalDriver("b", str(tmp_path / "b"), calls=PORTABLE)
    assert plain_rows(pair.source, portable, moves, rows=64, size_bytes=1 << 20) == ([], None)
    monkeypatch.setattr(compiled, "compiled_kernels", lambda *_, worth_loading: "loaded" if worth_loading else None)
    monkeypatch.setattr(compiled, "WORTH_LOADING_OBJECTS", 5)
    monkeypatch.setattr(compiled, "_carried", compiled._Carried())
    found = [compiled.compiled_rows(pair.source.tree, pair.target.tree, objects=2) is not None for _ in range(4)]
    assert found == [False, False, True, True]


def test_a_folder_that_could_not_be_emptied_has_no_rows(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.write("d/one")
    pair.write("d/two")
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    with pair.rows("d/one", "d/two") as rows:
        pair.stage(rows)
        assert rows.names() == ["waiting", "waiting"]


def test_a_name_that_is_taken_in_the_working_folder_is_left_as_it_is(pair: Pair) -> None:
    pair.write("d/one")
    pair.write("d/two")
    taken = pair.path(".rebalance/tmp/m0", target=True)
    taken.write_bytes(b"half a copy")
    with pair.rows("d/one", "d/two") as rows:
        pair.stage(rows)
        assert rows.names() == ["waiting" if rows.aside(MoveId("m1")) is None else "copied", "copied"]
        rows.give_names([0, 1])
    assert taken.read_bytes() == b"half a copy"


@pytest.mark.parametrize("room", [0, 1, 10])
def test_copies_are_read_back_whether_they_stayed_open_or_not(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    keys = [f"d/{n}" for n in range(4)]
    for key in keys:
        pair.write(key)
    monkeypatch.setattr(DESCRIPTORS, "take", lambda _: room)
    monkeypatch.setattr(DESCRIPTORS, "give_back", lambda _: None)
    before = descriptors()
    with pair.rows(*keys, at_once=2) as rows:
        pair.stage(rows)
        assert (rows._open >= 0).sum() == min(room, 4)
        rows.read_back(lambda: None)
        assert rows.at("verified") == [0, 1, 2, 3]
    assert descriptors() <= before + 2  # working folders


def test_a_copy_that_reads_back_differently_is_not_verified_and_stays_for_the_driver(pair: Pair) -> None:
    pair.write("d/one")
    pair.write("d/two")
    with pair.rows("d/one", "d/two") as rows:
        pair.stage(rows)
        pair.aside(rows, 0).write_bytes(BODY[::-1])
        rows.read_back(lambda: None)
        assert rows.names() == ["read", "verified"]
        rows.give_names([0, 1])
    assert pair.target.staged(MoveId("m0")) is not None


def test_a_taken_key_a_changed_source_and_another_copy_are_not_published(pair: Pair) -> None:
    keys = [f"d/{name}" for name in ("taken", "changed", "gone", "other", "plain")]
    for key in keys:
        pair.write(key)
    with pair.rows(*keys) as rows:
        pair.verified(rows)
        stranger = pair.path("d/taken", target=True)
        stranger.parent.mkdir()
        stranger.write_bytes(b"a stranger's")
        pair.path("d/changed").write_bytes(b"newer")
        pair.path("d/gone").unlink()
        other = pair.aside(rows, 3)
        if rows.aside(MoveId("m3")) is None:
            other.unlink()
        other.write_bytes(BODY)
        pair.publish(rows)
        assert rows.names() == [*["verified"] * 4, "published"]
    assert stranger.read_bytes() == b"a stranger's"
    assert [path.name for path in sorted(stranger.parent.iterdir())] == ["plain", "taken"]


def test_a_source_that_changed_is_not_freed_and_only_what_readers_are_sent_to_is(pair: Pair) -> None:
    keys = ["d/changed", "d/plain", "d/left"]
    for key in keys:
        pair.write(key)
    with pair.rows(*keys) as rows:
        pair.verified(rows)
        pair.publish(rows)
        rows.leave([2])
        pair.path("d/changed").write_bytes(b"newer")
        pair.free(rows)
        assert rows.names() == ["flipped", "freed", "left"]
    assert pair.path("d/changed").read_bytes() == b"newer"
    assert pair.path("d/left").exists()
    assert pair.source.free("d/left", MoveId("m2"), rows.source(2)) is FreeOutcome.FREED


@pytest.mark.parametrize("step", ["publish", "free"])
def test_what_went_through_a_folder_that_was_renamed_is_taken_back(pair: Pair, step: str) -> None:
    keys = ["d/one", "d/two", "e/one", "e/two"]
    for key in keys:
        pair.write(key)
    with pair.rows(*keys, at_once=1) as rows:
        pair.verified(rows)
        moved: list[bool] = []

        def rename() -> None:
            if not moved:
                moved.append(True)
                folder = pair.path("d", target=step == "publish")
                folder.rename(folder.with_name("renamed"))

        with ExitStack() as stack:
            if step == "free":
                pair.publish(rows)
                rows.flipped()
            hold = stack.enter_context(pair.source.hold())
            if step == "publish":
                hold = stack.enter_context(pair.target.hold())
                rows.publish(rename)
            else:
                rows.free(rename)
        assert hold.strays == {"m0", "m1"}
    side = pair.path("renamed", target=step == "publish")
    assert [path.name for path in sorted(side.iterdir())] == ([] if step == "publish" else ["one", "two"])


def test_what_spend_raises_ends_the_step_before_anything_of_those_bytes_is_made(pair: Pair) -> None:
    class StopError(Exception):
        pass

    def stop(_: int) -> None:
        if pair.spent:
            raise StopError
        pair.spent.append(1)

    for n in range(4):
        pair.write(f"d/{n}")
    with pair.rows(*(f"d/{n}" for n in range(4)), at_once=2) as rows, pair.source.hold():
        with pytest.raises(StopError):
            rows.stage(stop, lambda _: None)
        rows.give_names(range(4))
        assert rows.names() == ["copied", "copied", "waiting", "waiting"]
    assert len(list(pair.target.list_staged())) == 2
