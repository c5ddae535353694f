"""``fleet://`` is a file system like any other to fsspec and what stands on it."""

from __future__ import annotations

import asyncio
import errno
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

from rebalance_tasks import InvalidKey, Rebalancer
from rebalance_tasks.core.measures import with_access_counts
from rebalance_tasks.drivers import doors
from rebalance_tasks.fleetfs import opened
from rebalance_tasks.fleetfs.opened import open_fleet
from tests.support.engine import Engine, move
from tests.support.fleets import NodeSpec, made_up
from tests.support.hooks import after
from tests.support.places import S3Place, SftpPlace

if TYPE_CHECKING:
    from rebalance_tasks.fleetfs import FleetFileSystem
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet
    from tests.support.places import Place
    from tests.support.sftp import Sftp
    from tests.support.weed import Weed

pytestmark = pytest.mark.integration

FILES = {"n1": {"a/one": 3000, "a/b/two": 5000}, "n2": {"a/three": 7000, "four": 0}}


@pytest.fixture
def nodes(fleet_config: FleetFactory) -> Fleet:
    made = fleet_config(FILES, options={"throttle_bytes_per_sec": "none"})
    Rebalancer().adopt()
    return made


@pytest.fixture
def fs(nodes: Fleet) -> FleetFileSystem:
    made: FleetFileSystem = fsspec.filesystem("fleet")
    return made


def names(found: list[Any]) -> list[str]:
    return sorted(entry["name"] if isinstance(entry, dict) else entry for entry in found)


def test_all_nodes_are_one_tree(fs: FleetFileSystem) -> None:
    assert fs.ls("fleet://", detail=False) == ["test"]
    assert names(fs.ls("fleet://test")) == ["test/a", "test/four"]
    assert names(fs.ls("test/a", detail=False)) == ["test/a/b", "test/a/one", "test/a/three"]
    assert fs.find("test") == ["test/a/b/two", "test/a/one", "test/a/three", "test/four"]
    assert fs.glob("test/a/*e") == ["test/a/one", "test/a/three"]
    assert (fs.isdir("test/a"), fs.isfile("test/a"), fs.isfile("test/a/one"), fs.isdir("test")) == (
        True,
        False,
        True,
        True,
    )
    assert fs.info("fleet://test/a/one") | {"mtime": 0} == {
        "name": "test/a/one",
        "size": 3000,
        "type": "file",
        "mtime": 0,
    }
    assert fs.ls("test/a/one", detail=False) == ["test/a/one"]
    assert fs.du("test") == 15_000


def test_objects_are_read_whole_in_stretches_and_as_files(fs: FleetFileSystem) -> None:
    whole = made_up("a/three", 7000)
    assert fs.cat_file("fleet://test/a/three") == whole
    assert [fs.cat_file("test/a/three", *cut) for cut in ((10, 20), (None, 5), (-7, None), (-7, -2), (6999, 9000), (9000, 9001))] == [
        whole[10:20], whole[:5], whole[-7:], whole[-7:-2], whole[6999:], b"",
    ]  # fmt: skip
    assert fs.cat(["test/a/one", "test/four"]) == {"test/a/one": made_up("a/one", 3000), "test/four": b""}
    assert fs.cat_ranges(["test/a/three", "test/a/one"], [1, 2], [5, 7]) == [whole[1:5], made_up("a/one", 3000)[2:7]]
    assert isinstance(fs.cat_ranges(["test/nothing"], 0, 1)[0], FileNotFoundError)
    with fs.open("test/a/three", block_size=512) as file:
        file.seek(-100, 2)
        assert file.read() == whole[-100:]
        file.seek(3000)
        assert file.read(50) == whole[3000:3050]
    with fs.open("test/four") as file:
        assert file.read() == b""


def test_objects_are_written_copied_renamed_and_removed(fs: FleetFileSystem, tmp_path: Path) -> None:
    fs.pipe_file("test/new/x", b"piped")
    with fs.open("test/new/text", "w", encoding="utf-8") as file:
        file.write("grüße\n")
    assert fs.read_text("test/new/text", encoding="utf-8") == "grüße\n"
    big = os.urandom(3 << 20)
    with fs.open("test/new/big", "wb", block_size=1 << 20) as file:
        file.write(big[:100])
        file.write(big[100:])
    (tmp_path / "local").write_bytes(b"from here")
    fs.put_file(str(tmp_path / "local"), "test/new/put")
    (tmp_path / "folder/deep").mkdir(parents=True)
    (tmp_path / "folder/deep/one").write_bytes(b"1")
    fs.put(str(tmp_path / "folder"), "test/tree", recursive=True)
    fs.get("test/tree", str(tmp_path / "tree"), recursive=True)
    assert (tmp_path / "tree/deep/one").read_bytes() == b"1"
    fs.mv("test/tree", "test/wood", recursive=True)
    assert fs.find("test/wood") == ["test/wood/deep/one"]
    # What is left on the disk are empty folders.
    assert not fs.exists("test/tree")
    with pytest.raises(FileNotFoundError):
        fs.ls("test/tree")
    fs.rm("test/wood", recursive=True)
    fs.get_file("test/new/big", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == big
    fs.cp_file("test/new/put", "test/new/copy")
    fs.mv("test/new/put", "test/new/moved")
    assert names(fs.ls("test/new")) == [
        "test/new/big",
        "test/new/copy",
        "test/new/moved",
        "test/new/text",
        "test/new/x",
    ]
    assert fs.cat("test/new/moved") == fs.cat("test/new/copy") == b"from here"
    fs.touch("test/new/x")
    assert fs.size("test/new/x") == 0
    fs.rm("test/new/x")
    fs.rm("test/new", recursive=True)
    assert not fs.exists("test/new")
    assert fs.find("test") == ["test/a/b/two", "test/a/one", "test/a/three", "test/four"]


def test_what_goes_wrong_is_what_users_of_files_expect(fs: FleetFileSystem, nodes: Fleet) -> None:
    for act in (fs.cat_file, fs.info, fs.rm_file, fs.ls, fs.open):
        with pytest.raises(FileNotFoundError, match="nothing"):
            act("test/no/nothing")
    with pytest.raises(FileNotFoundError, match="write fleet://test/key"):
        fs.cat_file("fleet://other/x")
    with pytest.raises(IsADirectoryError, match="recursive"):
        fs.rm("test/a")
    with pytest.raises(IsADirectoryError):
        fs.pipe_file("test", b"")
    with pytest.raises(FileExistsError):
        fs.pipe_file("test/a/one", b"", mode="create")
    with pytest.raises(FileExistsError), fs.open("test/a/one", "xb") as file:
        file.write(b"")
    assert fs.cat_file("test/a/one") == made_up("a/one", 3000)
    with pytest.raises(NotImplementedError, match="use 'rb', 'wb' or 'xb'"):
        fs.open("test/a/one", "ab")
    for key in ("../n2/four", ".rebalance/node-id", "a//b", "nul\0"):
        with pytest.raises(InvalidKey):
            fs.cat_file(f"test/{key}")
        assert not fs.exists(f"test/{key}")
        with pytest.raises(InvalidKey):
            fs.pipe_file(f"test/{key}", b"")
    nodes.roots["n2"].rename(nodes.roots["n2"].with_name("gone"))
    opened._fleets.clear()  # what holds the root open follows the disk wherever it goes
    with pytest.raises(OSError, match="not found on the nodes that answer") as caught:
        fs.exists("test/a/three")
    assert caught.value.errno == errno.EIO
    with pytest.raises(OSError, match="n2"):
        fs.ls("test/a")
    assert fs.cat_file("test/a/one") == made_up("a/one", 3000)


def write_half(fs: FleetFileSystem, **options: Any) -> None:
    """Be stopped in the middle of it."""
    with fs.open("test/a/one", "wb", **options) as file:
        file.write(b"more than a small block")
        raise ZeroDivisionError


def test_a_writer_whose_block_fails_leaves_the_object_as_it_was(fs: FleetFileSystem, nodes: Fleet) -> None:
    with pytest.raises(ZeroDivisionError):
        write_half(fs)
    with pytest.raises(ZeroDivisionError):
        write_half(fs, block_size=10)
    fs.start_transaction()
    with fs.open("test/a/one", "wb") as file:
        file.write(b"whole, but not committed")
    fs.transaction.complete(commit=False)
    fs.end_transaction()
    assert fs.cat_file("test/a/one") == made_up("a/one", 3000)
    with fs.transaction, fs.open("test/a/one", "wb") as file:
        file.write(b"whole")
    assert fs.cat_file("test/a/one") == b"whole"
    assert nodes.leftovers() == []


def test_pandas_and_pyarrow_read_and_write_by_url(fs: FleetFileSystem) -> None:
    frame = pd.DataFrame({"key": ["x", "y"], "n": [1, 2]})
    frame.to_csv("fleet://test/tables/frame.csv", index=False)
    pd.testing.assert_frame_equal(pd.read_csv("fleet://test/tables/frame.csv"), frame.astype({"key": "str"}))
    frame.to_parquet("fleet://test/tables/frame.parquet")
    assert pd.read_parquet("fleet://test/tables/frame.parquet")["n"].tolist() == [1, 2]
    table = pa.table({"n": list(range(1000)), "part": [number % 3 for number in range(1000)]})
    pq.write_table(table, "test/tables/one.parquet", filesystem=fs)
    assert pq.read_table("test/tables/one.parquet", filesystem=fs).equals(table)
    pads.write_dataset(table, "test/set", filesystem=fs, format="parquet", partitioning=["part"])
    found = pads.dataset("test/set", filesystem=fs, format="parquet", partitioning=["part"]).to_table()
    assert sorted(found["n"].to_pylist()) == list(range(1000))


def test_polars_reads_and_writes_through_open_files(fs: FleetFileSystem) -> None:
    import polars as pl  # starts threads, which no test that forks needs

    frame = pl.DataFrame({"n": [1, 2, 3]})
    with fs.open("test/polars.parquet", "wb") as file:
        frame.write_parquet(file)
    with fs.open("test/polars.parquet") as file:
        assert pl.read_parquet(file).equals(frame)


def test_it_is_pickled_and_works_in_a_fork_and_asynchronously(fs: FleetFileSystem) -> None:
    assert fs.cat_file("test/four") == b""
    again = pickle.loads(pickle.dumps(fs))  # noqa: S301  our own
    assert again.cat_file("test/a/one") == made_up("a/one", 3000)
    with fs.open("test/a/one") as file:
        assert pickle.loads(pickle.dumps(file)).read() == made_up("a/one", 3000)  # noqa: S301  our own
    child = os.fork()
    if child == 0:
        fs.pipe_file("test/forked", b"from a child")
        os._exit(0 if fs.cat_file("test/a/one") == made_up("a/one", 3000) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert fs.cat_file("test/forked") == b"from a child"

    async def read() -> list[bytes]:
        wrapped = AsyncFileSystemWrapper(fs, asynchronous=True)
        return [await wrapped._cat_file("test/a/one"), *await asyncio.gather(*[wrapped._cat_file("test/forked")] * 3)]

    assert asyncio.run(read()) == [made_up("a/one", 3000), *[b"from a child"] * 3]


def test_a_tool_that_reads_through_it_loads_no_celery(nodes: Fleet) -> None:
    code = (
        "import sys, fsspec; fsspec.filesystem('fleet').cat_file('test/a/one'); from rebalance_tasks import Rebalancer; "
        "Rebalancer().locate('a/one'); print([name for name in ('celery', 'kombu', 'asyncssh') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_a_listing_misses_nothing_that_moves_behind_it(fs: FleetFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()

    def carry(*_: object) -> None:
        # n2 was looked into and n1 was not, or the other way round: either way somebody is caught between two nodes.
        engine.start(
            [move("a/one", "n1", "n2", 3000), move("a/three", "n2", "n1", 7000), move("a/b/two", "n1", "n2", 5000)]
        )
        assert engine.finish().completed_moves == 3

    after(monkeypatch, doors.LocalDoor, "browse", carry)
    assert names(fs.ls("test/a")) == ["test/a/b", "test/a/one", "test/a/three"]
    assert names(fs.ls("test/a/b")) == ["test/a/b/two"]


def test_an_open_file_goes_on_at_its_new_place_and_never_with_another_version(fs: FleetFileSystem) -> None:
    whole = made_up("a/one", 3000)
    with fs.open("test/a/one", block_size=64, cache_type="none") as file:
        assert file.read(100) == whole[:100]
        engine = Engine()
        engine.start([move("a/one", "n1", "n2", 3000)])
        assert engine.finish().completed_moves == 1
        file._let_go()  # as stores do, which have nothing open between two requests
        assert file.read(200) == whole[100:300]
        fs.pipe_file("test/a/one", whole[::-1])
        file._let_go()
        with pytest.raises(OSError, match="replaced while it was read") as caught:
            file.read(10)
        assert caught.value.errno == errno.ESTALE


def test_accesses_are_counted_for_gravity(nodes: Fleet) -> None:
    fleet = open_fleet(None, sample=1)
    fs = fsspec.filesystem("fleet", sample=1)
    for _ in range(5):
        fs.cat_file("test/a/one")
    fs.pipe_file("test/a/three", b"x")
    fleet.accesses.send()
    counts, hours = fleet.accesses._store.recent()
    assert (counts, hours) == ({"a/one": (5, 0), "a/three": (0, 1)}, 1.0)
    inventory = with_access_counts(Rebalancer().survey().inventory, counts, hours)
    assert inventory.reads_per_hour is not None
    assert inventory.reads_per_hour.sum() == 5.0
    del nodes


def test_buckets_and_sftp_are_written_and_listed_as_disks_are(
    weed: Weed, sftp: Sftp, tmp_path: Path, fleet_config: FleetFactory
) -> None:
    (tmp_path / "far").mkdir()
    places: dict[str, Place] = {
        "bucket": S3Place(weed.bucket(), "a/b", weed.options()),
        "far": SftpPlace(tmp_path / "far", port=sftp.port, options=sftp.options()),
    }
    specs = {
        node: NodeSpec(settings={"url": place.url(), **place.settings()}, capacity_bytes=10**9)
        for node, place in places.items()
    }
    fleet_config(specs)
    Rebalancer().adopt()
    fs = fsspec.filesystem("fleet")
    keys = [f"d{number % 3}/k{number}" for number in range(12)]
    for key in keys:
        fs.pipe_file(f"test/{key}", key.encode())
        fs.pipe_file(f"test/{key}", f"{key} again".encode())
    assert {node for node in places for key in keys if places[node].get(key) is not None} == set(places)
    assert [fs.cat_file(f"test/{key}") for key in keys] == [f"{key} again".encode() for key in keys]
    assert names(fs.ls("test")) == ["test/d0", "test/d1", "test/d2"]
    assert fs.find("test") == sorted(f"test/{key}" for key in keys)
    assert fs.cat_file(f"test/{keys[0]}", 3, 5) == f"{keys[0]} again".encode()[3:5]
    fs.rm("test", recursive=True)
    assert fs.find("test") == []
    assert all(
        place.names(folder) == [] for place in places.values() for folder in (".rebalance/tmp", ".rebalance/trash")
    )


def test_what_the_how_to_shows_runs_as_it_stands(fleet_config: FleetFactory) -> None:
    fleet_config({"n1": {}, "n2": {}}, fleet={"name": "archive"})
    Rebalancer().adopt()
    page = (Path(__file__).parents[2] / "docs/how-to/fleet-file-system.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "how-to", "exec"), {})  # noqa: S102  our own page
    assert fsspec.filesystem("fleet").find("archive") == ["archive/tables/days.parquet"]
