"""Parts of a node: together they hold what the whole holds, whatever the tree looks like; apart they hold nothing twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebalance_tasks.control.surveying.memory import SurveyMemory
from rebalance_tasks.control.surveying.parts import joined, names_of, node_of, part_of, parts_for
from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.drivers.local import listing as local_listing
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.drivers.node_parts import Part, TooManyObjects
from rebalance_tasks.store.surveys import Finding

if TYPE_CHECKING:
    from rebalance_tasks.drivers.remembered import Remembered

NAMES = st.sampled_from(["a", "b", "c", "d", "ü", "x.dat"])
PATHS = st.lists(NAMES, min_size=1, max_size=5).map("/".join)
NOW_NS = 10**18


def made(root: Path, paths: set[str]) -> None:
    """Make files; a path that another one needs for a folder is a folder."""
    for path in sorted(paths):
        file = root / path
        if any(other.startswith(f"{path}/") for other in paths):
            file.mkdir(parents=True, exist_ok=True)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(path.encode())


def found_in(listing: Remembered) -> list[tuple[str, int]]:
    return sorted(zip(listing.keys.to_pylist(), listing.size_bytes.tolist(), strict=True))


@settings(max_examples=60, deadline=None)
@given(paths=st.sets(PATHS, max_size=30), more=st.sets(PATHS, max_size=5), count=st.sampled_from([1, 2, 4, 16]))
def test_parts_hold_every_object_once_also_from_memory(paths: set[str], more: set[str], count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        driver = LocalDriver("n", folder)
        made(Path(folder), paths)
        (Path(folder) / "link").symlink_to("x")
        before: dict[int, Remembered | None] = dict.fromkeys(range(count))
        for _ in range(2):
            whole = driver.list_changed(None, require_identity=False)
            parts = {
                number: driver.list_changed(before[number], require_identity=False, part=Part(number, count))
                for number in range(count)
            }
            assert sorted(row for part in parts.values() for row in found_in(part)) == found_in(whole)
            assert sum(part.left_out.get("symlink", 0) for part in parts.values()) == 1, "counted once, too"
            before = dict(parts)
            made(
                Path(folder),
                {path for path in more if not any(p.startswith(path) or path.startswith(p) for p in paths)},
            )
        driver.close()


def test_a_part_in_which_nothing_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_listing, "SETTLED_NS", -(10**19))
    made(tmp_path, {f"{a}/{b}/o" for a in "abcd" for b in "abcd"})
    driver = LocalDriver("n", str(tmp_path))
    parts = [Part(number, 4) for number in range(4)]
    before = [driver.list_changed(None, require_identity=False, part=part) for part in parts]
    assert all(found.digest() for found in before)
    (tmp_path / "a" / "a" / "new").write_bytes(b"1")
    again = [
        driver.list_changed(known, require_identity=False, part=part) for part, known in zip(parts, before, strict=True)
    ]
    assert [now is not known for now, known in zip(again, before, strict=True)] == [part.owns("a/a") for part in parts]


def test_a_listing_that_finds_too_much_is_broken_off(tmp_path: Path) -> None:
    made(tmp_path, {f"{a}/{number}" for a in "abc" for number in range(5)})
    driver = LocalDriver("n", str(tmp_path))
    assert len(driver.list_changed(None, require_identity=False, most=15).keys) == 15
    with pytest.raises(TooManyObjects):
        driver.list_changed(None, require_identity=False, most=14)


@pytest.mark.parametrize(
    ("objects", "count"), [(0, 1), (1_000_000, 1), (1_000_001, 2), (3_000_000, 4), (10**7, 16), (10**9, 64)]
)
def test_a_large_node_is_cut_into_a_power_of_two(objects: int, count: int) -> None:
    assert parts_for(objects) == count


def test_names_of_parts_are_read_back() -> None:
    assert names_of("n1", 1) == ["n1"]
    names = names_of("n1", 16)
    assert len(set(names)) == 16
    assert {node_of(name) for name in names} == {"n1"}
    assert [part_of(name) for name in names] == [Part(number, 16) for number in range(16)]
    assert part_of("n1") is None


def finding(name: str, **facts: object) -> Finding:
    return Finding.model_validate({"node_id": name, "digest": "d", "adopted": True, "total_bytes": 100, **facts})


def test_findings_of_parts_add_up() -> None:
    [whole, other] = joined(
        [
            finding(
                "n1@0of2", objects=3, used_bytes=30, unlisted={"zero_bytes": 1}, left_out={"symlink": 1}, latency_ms=4
            ),
            finding("n1@1of2", objects=4, used_bytes=40, unlisted={"zero_bytes": 2, "pinned": 1}, latency_ms=2),
            finding("n2", objects=1),
        ]
    )
    assert (whole.node_id, whole.objects, whole.used_bytes) == ("n1", 7, 70)
    assert (whole.unlisted, whole.left_out) == ({"zero_bytes": 3, "pinned": 1}, {"symlink": 1})
    assert (whole.digest, whole.latency_ms, whole.total_bytes) == ("d d", 2, 100)
    assert other.node_id == "n2"


@pytest.mark.parametrize(
    ("second", "why"),
    [([finding("n@1of2", error="no disk", cause="node_missing")], "no disk"), ([], "1 of its 2 parts")],
)
def test_a_node_with_a_part_that_failed_is_left_out(second: list[Finding], why: str) -> None:
    [whole] = joined([finding("n@0of2", objects=3), *second])
    assert why in whole.error
    assert whole.objects == 0


def test_a_part_in_which_something_passes_by_itself_makes_the_node_such() -> None:
    [whole] = joined([finding("n@0of2"), finding("n@1of2", unlisted={"too_young": 1})])
    assert not whole.lasting


# -- the memory of them on disk ---------------------------------------------------------------------------------------
KILLED = """
import os, signal, sys
from datetime import timedelta
from pathlib import Path
import pyarrow as pa
from rebalance_tasks.control.surveying.memory import SurveyMemory
from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.drivers.local.driver import LocalDriver

root, seen, how = sys.argv[1:]
if how == "half":
    def cut(self, table):
        self.write_batch(table.to_batches()[0])
        os.kill(os.getpid(), signal.SIGKILL)
    pa.ipc.RecordBatchFileWriter.write_table = cut
else:
    Path.replace = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)
SurveyMemory(Path(seen), timedelta(hours=1)).list_objects(
    LocalDriver("n", root), NodeDescriptor(node_id="n", url=Path(root).as_uri()), now_ns=10**18, require_identity=False
)
"""


@pytest.mark.parametrize("how", ["half", "whole"])
def test_what_a_killed_survey_left_is_never_read_and_removed_in_the_end(tmp_path: Path, how: str) -> None:
    root, seen = tmp_path / "root", tmp_path / "seen"
    made(root, {"a/1", "a/2"})
    dead = subprocess.run([sys.executable, "-c", KILLED, str(root), str(seen), how], check=False)
    assert dead.returncode == -signal.SIGKILL
    [left] = seen.iterdir()
    assert left.suffix != ".arrow"
    memory, node = SurveyMemory(seen, timedelta(hours=1)), NodeDescriptor(node_id="n", url=root.as_uri())
    driver = LocalDriver("n", str(root))
    assert memory._load(node, "n", now_ns=NOW_NS) == (None, NOW_NS)
    found = memory.list_objects(driver, node, now_ns=NOW_NS, require_identity=False)
    assert found_in(found) == [("a/1", 3), ("a/2", 3)]
    written_ns = left.stat().st_mtime_ns
    memory.tidy(now_ns=written_ns + 10**9)
    assert left.exists(), "whoever writes may be at it still"
    os.utime(seen / "n.arrow", ns=(written_ns + 10**12, written_ns + 10**12))
    memory.tidy(now_ns=written_ns + 3_601 * 10**9)
    assert [path.name for path in seen.iterdir()] == ["n.arrow"]


def test_a_file_that_was_cut_off_under_its_own_name_is_not_read(tmp_path: Path) -> None:
    """As a host that lost power may leave it."""
    root, seen = tmp_path / "root", tmp_path / "seen"
    made(root, {f"a/{number}" for number in range(300)})
    memory, node = SurveyMemory(seen, timedelta(hours=1)), NodeDescriptor(node_id="n", url=root.as_uri())
    driver = LocalDriver("n", str(root))
    memory.list_objects(driver, node, now_ns=NOW_NS, require_identity=False)
    whole = (seen / "n.arrow").read_bytes()
    for end in range(0, len(whole), 97):
        (seen / "n.arrow").write_bytes(whole[:end])
        assert len(memory.list_objects(driver, node, now_ns=NOW_NS, require_identity=False).keys) == 300


def test_parts_are_remembered_apart(tmp_path: Path) -> None:
    root, seen = tmp_path / "root", tmp_path / "seen"
    made(root, {f"{a}/o" for a in "abcdefgh"})
    memory, node = SurveyMemory(seen, timedelta(hours=1)), NodeDescriptor(node_id="n", url=root.as_uri())
    driver = LocalDriver("n", str(root))
    counts = [
        len(memory.list_objects(driver, node, now_ns=NOW_NS, require_identity=False, name=name).keys)
        for name in names_of("n", 4)
    ]
    assert sum(counts) == 8
    assert {path.name for path in seen.iterdir()} == {f"{name}.arrow" for name in names_of("n", 4)}
    assert pa.ipc.open_file(seen / "n@0of4.arrow").read_all().num_rows == counts[0]
