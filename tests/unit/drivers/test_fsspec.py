"""Nodes behind fsspec: which are refused and why, how their files are told apart, and what is tried before a byte is written."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebalance_tasks.core.errors import ConfigurationError, InvalidKey, NodeMissing, NodeNotWritable, TargetExists
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.drivers.base import ObjectMetadata, ObjectTooLarge
from rebalance_tasks.drivers.fsspec import files as fsspec_files
from rebalance_tasks.drivers.fsspec.driver import FsspecDriver
from rebalance_tasks.drivers.fsspec.info import found_of, time_ns
from rebalance_tasks.drivers.fsspec.options import fsspec_place
from rebalance_tasks.drivers.fsspec.probe import Abilities, OddNames, features, probe
from rebalance_tasks.drivers.fsspec.tree import FsspecTree
from rebalance_tasks.drivers.registry import open_driver, validate_roots
from rebalance_tasks.drivers.trees.calls import Kind
from rebalance_tasks.migration.control import SliceControl
from rebalance_tasks.migration.copying import Copier, StagedCopy
from tests.unit.drivers.conformance import stage

if TYPE_CHECKING:
    from pathlib import Path

M1 = MoveId("job-1:0")


def node(url: str, node_id: str = "n1", **options: Any) -> NodeDescriptor:
    return NodeDescriptor(node_id=node_id, url=url, storage_options=options)


def driver(root: Path, **options: Any) -> FsspecDriver:
    root.mkdir(exist_ok=True)
    made = open_driver(node(f"fsspec+file://{root}", **{"sole_writer": True, **options}))
    assert isinstance(made, FsspecDriver)
    return made


# -- which nodes there are ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("url", "options", "way_out"),
    [
        ("ftp://", {}, r"write fsspec\+protocol://host/path"),
        ("ftp://host/a/../b", {}, r"without '::', '\.\.'"),
        ("fsspec+zip://x::ftp://host/a", {}, "without '::'"),
        ("ftp://host/a?b", {}, "without"),
        ("ftp://host/a", {"sole_writer": "yes"}, "storage_options.sole_writer is neither true nor false"),
        ("fsspec+nothing://host/a", {}, r"install rebalance-tasks\[fsspec\], and the library that serves nothing://"),
        ("nothing://host/a", {}, "unknown scheme 'nothing'; known: .*what fsspec serves"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_with_the_way_out(
    url: str, options: dict[str, Any], way_out: str
) -> None:
    with pytest.raises(ConfigurationError, match=way_out):
        open_driver(node(url, **options))


def test_no_refusal_shows_a_password() -> None:
    with pytest.raises(ConfigurationError) as refused:
        open_driver(node("fsspec+nothing://user:s3cret@host/a", password="s3cret"))  # noqa: S106
    assert "s3cret" not in str(refused.value)
    assert "s3cret" not in repr(fsspec_place(node("ftp://user:s3cret@host/a", password="s3cret")))  # noqa: S106


def test_two_nodes_in_one_folder_are_refused_and_side_by_side_are_fine() -> None:
    validate_roots([node("ftp://host/a", "n1"), node("ftp://host/ab", "n2"), node("ftp://other/a", "n3")])
    validate_roots([node("fsspec+file:///a", "n1", host="x"), node("fsspec+file:///a", "n2", host="y")])
    for url in ("ftp://host/a/", "ftp://host/a/b", "ftp://user@host/a", "fsspec+ftp://host/a"):
        with pytest.raises(ConfigurationError, match="side by side"):
            validate_roots([node("ftp://host/a", "n1"), node(url, "n2")])


def test_a_server_that_is_away_makes_the_node_missing_and_shows_no_password() -> None:
    away = open_driver(node("ftp://127.0.0.1:1/a", username="u", password="s3cret"))  # noqa: S106
    with pytest.raises(NodeMissing, match="check the server") as said:
        away.check_identity()
    assert "s3cret" not in str(said.value)


# -- the operator's word --------------------------------------------------------------------------------------------------
def test_without_the_operators_word_a_node_can_be_looked_at_and_never_written_to(tmp_path: Path) -> None:
    root = tmp_path / "root"
    driver(root).adopt()
    (root / "k").write_bytes(b"x")
    bare = driver(root, sole_writer=False)
    [size] = bare.list_objects().size_bytes.tolist()
    found = bare.stat("k")
    assert size == 1
    assert found is not None
    for act in (
        lambda: bare.stage(M1),
        lambda: bare.publish(M1, "a"),
        lambda: bare.free("k", M1, found),
        lambda: driver(tmp_path / "fresh", sole_writer=False).adopt(),
    ):
        with pytest.raises(
            NodeNotWritable, match=r"sole_writer is not set .*storage_options = \{ sole_writer = true \}"
        ):
            act()
    assert not (tmp_path / "fresh/.rebalance").exists()


def test_a_file_system_whose_renames_change_the_version_is_refused() -> None:
    with pytest.raises(NodeNotWritable, match="changes the version of a file when it renames it"):
        open_driver(node("fsspec+memory://a/b", sole_writer=True)).adopt()


def test_a_local_file_system_is_found_able_and_the_trial_leaves_nothing(tmp_path: Path) -> None:
    tree = FsspecTree(fsspec_place(node(f"fsspec+file://{tmp_path}")))
    assert probe(tree) == Abilities(tells_versions=True, keeps_versions=True, appends=True)
    assert list((tmp_path / ".rebalance/tmp").iterdir()) == []


# -- versions -------------------------------------------------------------------------------------------------------------
@settings(deadline=None)
@given(st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(2200, 1, 1)))  # noqa: DTZ001  made aware below
def test_a_time_is_the_same_however_a_file_system_writes_it(at: datetime) -> None:
    whole = at.replace(tzinfo=UTC)
    wanted = time_ns(whole)
    assert wanted == time_ns(at) == time_ns(whole.isoformat()) == time_ns(whole.strftime("%Y%m%d%H%M%S.%f"))
    assert wanted == time_ns(whole.astimezone(timezone(timedelta(hours=5))))
    second = whole.replace(microsecond=0)
    assert time_ns(second) == time_ns(format_datetime(second)) == time_ns(second.timestamp())


@pytest.mark.parametrize("value", [None, "", "yesterday", True, b"x", []])
def test_what_is_no_time_is_none(value: object) -> None:
    assert time_ns(value) == 0


def test_a_version_is_the_stores_tag_or_size_and_time_and_nothing_without_either() -> None:
    assert found_of({"type": "file", "size": 3, "ETag": '"abc"', "mtime": 1.5}).fingerprint.etag == "abc"
    assert found_of({"type": "file", "size": 3, "mtime": 1.5}).fingerprint.etag == "3-1500000000"
    assert found_of({"type": "file", "size": 3}).fingerprint.etag == ""
    odd = found_of({"type": "file", "size": 3, "etag": "W/../x"}).fingerprint.etag
    assert odd.isalnum()


@pytest.mark.parametrize(
    ("info", "kind"),
    [
        ({"type": "directory"}, Kind.FOLDER),
        ({"type": "directory", "islink": True}, Kind.LINK),
        ({"type": "link"}, Kind.LINK),
        ({"type": "OS.unix=slink"}, Kind.SPECIAL),
        ({"type": "file", "nlink": 2}, Kind.HARD_LINK),
        ({"type": "file"}, Kind.FILE),
    ],
)
def test_only_a_file_with_one_name_is_an_object(info: dict[str, Any], kind: Kind) -> None:
    assert found_of(info).kind is kind


def test_links_are_left_out_and_never_followed(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    (outside / "k").write_bytes(b"not ours")
    made = driver(root)
    made.adopt()
    (root / "folder").symlink_to(outside)
    (root / "link").symlink_to(outside / "k")
    listing = made.list_objects()
    assert (listing.keys, dict(listing.left_out)) == ([], {"symlink": 2})
    with pytest.raises(Exception, match="symbolic link"):
        made.stat("folder/k")
    stage(made, M1, b"x")
    with pytest.raises(TargetExists, match="symbolic link"):
        made.publish(M1, "folder/new")
    assert [path.name for path in outside.iterdir()] == ["k"]


def test_a_listing_that_breaks_off_is_no_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = driver(tmp_path / "root")
    made.adopt()
    (tmp_path / "root/folder").mkdir()
    original = made._tree.entries

    def broken(folder: str) -> Any:
        if folder == "folder":
            raise ConnectionResetError
        return original(folder)

    monkeypatch.setattr(made._tree, "entries", broken)
    with pytest.raises(NodeMissing, match="list objects"):
        made.list_objects()


# -- names ----------------------------------------------------------------------------------------------------------------
class Trimming(FsspecTree):
    """A server that strips spaces off the ends of names."""

    def path(self, name: str) -> str:
        return super().path("/".join(part.strip() for part in name.split("/")))


def test_a_name_that_a_server_would_change_is_found_out_before_it_is_published(tmp_path: Path) -> None:
    tree = Trimming(fsspec_place(node(f"fsspec+file://{tmp_path}")))
    names = OddNames(tree)
    assert names.keeps("plain/name-1.txt")
    assert names.keeps("a b/ü?*")
    assert not names.keeps("folder/ends with a space ")
    assert not names.keeps(" begins")
    assert list((tmp_path / ".rebalance/tmp").iterdir()) == []


def test_a_key_that_the_store_would_change_is_refused_and_the_copy_stays_aside(tmp_path: Path) -> None:
    made = driver(tmp_path / "root")
    made.adopt()
    made._names._try = lambda component: False  # type: ignore[method-assign]
    stage(made, M1, b"x")
    with pytest.raises(InvalidKey, match="does not keep such a name"):
        made.publish(M1, "odd?")
    assert made.staged(M1) is not None


@settings(deadline=None)
@given(st.text(min_size=1, max_size=20))
def test_names_of_letters_have_nothing_odd_and_others_say_what(name: str) -> None:
    plain = name.isascii() and name.isalnum()
    assert not features(name) or not plain


def test_a_folder_that_somebody_else_makes_at_the_same_time_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = FsspecTree(fsspec_place(node(f"fsspec+file://{tmp_path}")))
    file_system = tree._fs()

    def beaten(path: str, *, exist_ok: bool) -> None:
        assert exist_ok
        # As two workers meet: the first beats us to the outer folder, and in the next try to the inner one.
        made = tmp_path / "a" if not (tmp_path / "a").exists() else tmp_path / "a/b"
        made.mkdir()
        msg = "550 path already exists"
        raise RuntimeError(msg)

    monkeypatch.setattr(tree, "_fs", lambda: file_system)
    monkeypatch.setattr(file_system, "makedirs", beaten)
    tree.make_folder("a/b/key")
    assert (tmp_path / "a/b").is_dir()


# -- copies ---------------------------------------------------------------------------------------------------------------
def test_a_copy_that_is_longer_than_what_was_journalled_is_cut(tmp_path: Path) -> None:
    made = driver(tmp_path / "root")
    made.adopt()
    stage(made, M1, b"0123456789")
    again = made.stage(M1, offset=4)
    again.write(memoryview(b"new"))
    again.finish(ObjectMetadata())
    made.publish(M1, "k")
    assert (tmp_path / "root/k").read_bytes() == b"0123new"


def test_without_appending_an_object_is_written_at_once_and_a_larger_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = driver(tmp_path / "root")
    made.adopt()
    made._tree.abilities = Abilities(tells_versions=True, keeps_versions=True, appends=False)
    monkeypatch.setattr(fsspec_files, "WHOLE_BYTES", 10)
    assert stage(made, M1, b"0123456789").size_bytes == 10
    with pytest.raises(ObjectTooLarge, match="cannot append"):
        stage(made, M1, b"0123456789a")


def test_a_copy_of_ours_is_known_by_its_bytes_where_times_do_not_travel(tmp_path: Path) -> None:
    source, target = driver(tmp_path / "source"), driver(tmp_path / "target")
    for one in (source, target):
        one.adopt()
    (tmp_path / "source/k").write_bytes(b"bytes")
    os.utime(tmp_path / "source/k", (1, 1))
    copier = Copier(SliceControl(lambda: "ok", bucket=None, slice_s=60))
    copy: StagedCopy = copier.stage(
        source, target, "k", M1, size_bytes=5, resume=None, progress=lambda _: None, fresh=True
    )
    target.publish(M1, "k")
    assert copier.same(target, "k", copy) == target.stat("k")
    (tmp_path / "target/k").write_bytes(b"other")
    assert copier.same(target, "k", copy) is None
