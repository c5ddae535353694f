"""What is known of objects beside keys and sizes: files, providers, rules, access logs, folders."""

from __future__ import annotations

import fnmatch
import os
from datetime import UTC, datetime
from importlib.metadata import EntryPoint, EntryPoints
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pyarrow import csv, feather

from rebalance_tasks.control import providers
from rebalance_tasks.control.access_log import count_accesses, read_access_log
from rebalance_tasks.control.surveying import streams
from rebalance_tasks.control.surveying.streams import found_in
from rebalance_tasks.core.errors import ConfigurationError, InvalidInventory
from rebalance_tasks.core.gravity import access_score
from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.core.keeping.keeper import Keeper
from rebalance_tasks.core.measures import with_access_counts, with_access_from_times, with_neighbours
from rebalance_tasks.core.models import NodeDescriptor, StorageClass
from rebalance_tasks.core.options import RebalancerOptions
from rebalance_tasks.core.patterns import matching
from rebalance_tasks.core.planner import plan_rebalance
from rebalance_tasks.core.rule import Rule
from rebalance_tasks.core.rules import with_rules
from rebalance_tasks.core.verify import verify_plan
from rebalance_tasks.settings.model import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

HOUR_NS = 3600 * 10**9
NODES = [NodeDescriptor(node_id="n1")]
TWO = [NodeDescriptor(node_id=name, capacity_bytes=1_000) for name in ("n1", "n2")]


def holding(*keys: str, node: str = "n1", **columns: Any) -> Inventory:
    table = {"object_key": list(keys), "size_bytes": [10] * len(keys), "node_id": [node] * len(keys)}
    return Inventory.from_arrow(pa.table(table | columns))


# -- patterns and rules -----------------------------------------------------------------------------------------------
alphabet = st.sampled_from(list("ab/.*?[]!-%_\\\n"))


@given(st.lists(st.text(alphabet, min_size=1, max_size=6), max_size=8), st.text(alphabet, min_size=1, max_size=6))
@example(["\\", "a\\b"], "*\\")
@example(["\\", "a\\b"], "*\\*")
def test_patterns_match_as_fnmatch_does(keys: list[str], pattern: str) -> None:
    found = matching(pa.array(keys, pa.large_string()), [pattern])
    assert found.tolist() == [fnmatch.fnmatchcase(key, pattern) for key in keys]


def test_the_first_rule_that_says_something_counts_and_the_inventory_goes_before() -> None:
    inventory = holding("eu/a", "eu/b", "us/c", required_regions=[None, ["mars"], None])
    rules = [
        Rule(pattern="eu/*", regions=("eu-west", "eu-east")),
        Rule(pattern="*", regions=("us",), storage_class=StorageClass.SSD),
        Rule(pattern="us/*", pinned=True, tags={"owner": "web"}),
    ]
    found = with_rules(inventory, rules)
    assert found.required_regions is not None
    assert found.required_storage_class is not None
    assert found.pinned is not None
    regions = [found.required_regions.values[code] for code in found.required_regions.codes]
    assert regions == [("eu-east", "eu-west"), ("mars",), ("us",)]
    assert [found.required_storage_class.values[code] for code in found.required_storage_class.codes] == ["ssd"] * 3
    assert found.pinned.tolist() == [False, False, True]
    assert found.required_tags is not None
    assert (found.required_tags.codes.tolist(), found.required_tags.values) == ([-1, -1, 0], (("owner=web",),))
    assert with_rules(inventory, []) is inventory


def test_a_plan_keeps_to_the_rules() -> None:
    nodes = [
        NodeDescriptor(node_id=name, capacity_bytes=1000, region=region)
        for name, region in (("n1", "eu"), ("n2", "us"), ("n3", "eu"))
    ]
    inventory = with_rules(holding(*(f"eu/{i}" for i in range(90))), [Rule(pattern="eu/*", regions=("eu",))])
    options = RebalancerOptions()
    plan = plan_rebalance(nodes, inventory, options=options)
    verify_plan(plan, nodes, inventory, options)
    assert {move.target_node for move in plan.moves} == {"n3"}


# -- where it comes from ----------------------------------------------------------------------------------------------
def catalogue(nodes: Sequence[NodeDescriptor]) -> pa.Table:
    return pa.table({"object_key": ["k"], "size_bytes": [1], "node_id": [nodes[0].node_id]})


def broken(nodes: Sequence[NodeDescriptor]) -> pa.Table:
    raise KeyError(nodes)


def no_table(nodes: Sequence[NodeDescriptor]) -> list[str]:
    return []


def stream(nodes: Sequence[NodeDescriptor]) -> pa.RecordBatchReader:
    return many().to_reader(max_chunksize=3)


def many() -> pa.Table:
    """Ten objects on n1, of rising sizes; n2 holds the last of them as well."""
    keys = [f"{number:02}" for number in range(10)]
    columns = {"object_key": [*keys, "09"], "size_bytes": [*range(10, 20), 19], "node_id": ["n1"] * 10 + ["n2"]}
    return pa.table(columns)


def found(source: object, tmp_path: Path | None = None, *, most: int = 4) -> tuple[Inventory, dict[str, int]]:
    """What a configured source gives; measures add nothing."""
    settings = Settings(inventory=str(source), survey_dir=str(tmp_path / "seen") if tmp_path else "none")
    return found_in(settings, TWO, most=most, now=datetime(2026, 1, 1, tzinfo=UTC), measured=lambda rows: rows)


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than five rows are streamed, a few at a time."""
    monkeypatch.setattr(streams, "IN_MEMORY_ROWS", 5)
    monkeypatch.setattr(streams, "BATCH_ROWS", 3)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        EntryPoint(name=name, value=f"{__name__}:{name}", group=providers.PROVIDERS)
        for name in ("catalogue", "broken", "no_table", "stream")
    ]
    monkeypatch.setattr(providers, "entry_points", lambda group: EntryPoints(found).select(group=group))
    loaded = {"catalogue": catalogue, "broken": broken, "no_table": no_table, "stream": stream}
    monkeypatch.setattr(EntryPoint, "load", lambda self: loaded[self.name])


def test_a_provider_is_found_by_its_entry_point(installed: None) -> None:
    assert found("provider:catalogue")[1] == {"n1": 1}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nobody", "'nobody' is not installed; known are broken, catalogue, no_table, stream"),
        ("broken", "KeyError"),
        ("no_table", "returned list, not a pyarrow.Table"),
    ],
)
def test_a_provider_that_cannot_answer_is_refused(installed: None, name: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        found(f"provider:{name}")


def test_a_file_is_read_and_one_that_is_gone_is_named(tmp_path: Path) -> None:
    pq.write_table(catalogue(NODES), tmp_path / "list.parquet")
    assert len(found(tmp_path / "list.parquet")[0]) == 1
    with pytest.raises(InvalidInventory, match=r"gone\.csv"):
        found(tmp_path / "gone.csv")


# -- more rows than fit into memory -----------------------------------------------------------------------------------
def written(folder: Path, kind: str, rows: pa.Table) -> Path:
    """Write a file of a kind; ``folder``: a directory of Parquet files, as S3 Inventory leaves."""
    path = folder / f"list.{kind}"
    match kind:
        case "csv":
            csv.write_csv(rows, path)
        case "arrow":
            feather.write_feather(rows, path)
        case "parts.parquet":
            path.mkdir()
            pq.write_table(rows.slice(0, 4), path / "1.parquet")
            pq.write_table(rows.slice(4), path / "2.parquet")
        case _:
            pq.write_table(rows, path)
    return path


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv", "parts.parquet"])
def test_a_file_that_does_not_fit_into_memory_is_kept_as_candidates(
    small_memory: None, tmp_path: Path, kind: str
) -> None:
    inventory, used = found(written(tmp_path, kind, many()))
    assert used == {"n1": sum(range(10, 20)), "n2": 19}
    assert len(inventory) == 3
    assert {"07", "08"} <= set(inventory.keys.to_pylist()), "the largest are kept, but 09, which lies on both"
    assert dict(inventory.unlisted.objects) == {"not_a_candidate": 6, "ambiguous": 2}


def test_what_a_provider_streams_is_spilled_and_the_file_removed(
    installed: None, small_memory: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    rows = streams._rows

    def noted(path: Path) -> int:
        seen.append([file.name for file in (tmp_path / "seen" / "default").iterdir()])
        return rows(path)

    monkeypatch.setattr(streams, "_rows", noted)
    inventory, used = found("provider:stream", tmp_path)
    assert (len(inventory), used["n1"]) == (3, 145)
    [[spilled]] = seen
    assert (spilled.startswith("spill-"), spilled.endswith(".parquet")) == (True, True)
    assert list((tmp_path / "seen" / "default").iterdir()) == []
    monkeypatch.setattr(streams, "IN_MEMORY_ROWS", 100)
    assert len(found("provider:stream")[0]) == 11, "all rows, where they fit; also without a directory of its own"


def test_a_table_of_a_provider_that_is_too_large_is_kept_as_candidates_too(
    installed: None, small_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "provided", lambda *_: many())
    assert len(found("provider:catalogue")[0]) == 3


def test_a_wrong_row_of_a_stream_is_named_with_where_to_look(small_memory: None, tmp_path: Path) -> None:
    rows = many().set_column(1, "size_bytes", pa.array([*range(6), -1, *range(4)]))
    with pytest.raises(InvalidInventory, match=r"row 0 \('06'\): size_bytes -1 is negative \(counted from row 6"):
        found(written(tmp_path, "arrow", rows))


def test_a_file_that_changes_between_its_readings_is_refused(
    small_memory: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "parquet", many())
    kept = Keeper.kept

    def meanwhile(keeper: Keeper) -> Any:
        os.utime(path, ns=(1, 1))
        return kept(keeper)

    monkeypatch.setattr(Keeper, "kept", meanwhile)
    with pytest.raises(InvalidInventory, match=r"list\.parquet: it has changed while it was read"):
        found(path)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv"])
def test_a_damaged_file_is_refused_by_its_name(small_memory: None, tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, kind, many())
    path.write_bytes(b"\x00nothing" * 3)
    with pytest.raises(InvalidInventory, match=kind):
        found(path)


def test_some_rows_are_an_inventory_of_their_own() -> None:
    whole = Inventory.concat([holding("a", "b", pinned=[True, False]), holding("a", node="n2")])
    assert whole.ambiguous.tolist() == [True, False, True]
    part = whole.take(np.array([1, 2]))
    assert (part.keys.to_pylist(), part.ambiguous.tolist()) == (["b", "a"], [False, False])
    assert part.pinned is not None
    assert part.pinned.tolist() == [False, False]


# -- measures ---------------------------------------------------------------------------------------------------------
LOG = """\
own bucket [06/Feb/2026:00:00:38 +0000] 192.0.2.3 me R1 REST.GET.OBJECT photos/my%2520cat.jpg "GET /x HTTP/1.1" 200 - 1 1 1 1 "-" "-" -
own bucket [06/Feb/2026:02:00:38 +0000] 192.0.2.3 me R2 REST.PUT.OBJECT photos/my%2520cat.jpg "PUT /x HTTP/1.1" 200 - 1 1 1 1 "-" "-" -
own bucket [06/Feb/2026:01:00:38 +0000] 192.0.2.3 me R3 REST.HEAD.OBJECT a "HEAD /a HTTP/1.1" 200 - 1 1 1 1 "-" "-" -
own bucket [06/Feb/2026:01:00:38 +0000] 192.0.2.3 me R4 REST.GET.BUCKET - "GET / HTTP/1.1" 200 - 1 1 1 1 "-" "-" -
own bucket [99/Feb/2026:01:00:38 +0000] 192.0.2.3 me R5 REST.GET.OBJECT a "GET /a HTTP/1.1" 200 - 1 1 1 1 "-" "-" -
what is this
"""


def test_an_s3_access_log_is_counted_and_what_cannot_be_read_passed_over(tmp_path: Path) -> None:
    counts, hours = count_accesses(LOG.splitlines())
    assert (counts, hours) == ({"photos/my cat.jpg": (1, 1), "a": (1, 0)}, 2.0)
    (tmp_path / "log-1").write_text(LOG, encoding="utf-8")
    assert read_access_log(tmp_path) == read_access_log(tmp_path / "log-1") == (counts, hours)
    with pytest.raises(ConfigurationError, match="nowhere"):
        read_access_log(tmp_path / "nowhere")


def test_counted_accesses_become_rates() -> None:
    found = with_access_counts(holding("a", "b"), {"a": (6, 2), "z": (9, 9)}, hours=2.0)
    assert found.reads_per_hour is not None
    assert found.writes_per_hour is not None
    assert (found.reads_per_hour.tolist(), found.writes_per_hour.tolist()) == ([3.0, 0.0], [1.0, 0.0])
    told = holding("a", reads_per_hour=[7.0])
    assert with_access_counts(told, {"a": (1, 1)}, hours=1.0) is told


def test_times_tell_of_use_the_less_the_longer_ago() -> None:
    now = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * 10**9
    found = with_access_from_times(holding("a", "b", "c", mtime_ns=[now - 10 * HOUR_NS, now + HOUR_NS, None]), now)
    assert found.reads_per_hour is not None
    assert found.reads_per_hour.tolist() == pytest.approx([1_000.0, 10_000.0, 0.0])
    assert access_score(found.reads_per_hour).tolist() == pytest.approx([0.75, 1.0, 0.0], abs=1e-3)
    plain = holding("a")
    assert with_access_from_times(plain, now) is plain


def test_neighbours_share_a_folder_and_a_node() -> None:
    whole = Inventory.concat([holding("d/a", "d/b", "d/e/c", "top", "top2"), holding("d/f", node="n2")])
    found = with_neighbours(whole)
    assert found.colocated_dependencies is not None
    assert found.colocated_dependencies.tolist() == [1, 1, 0, 0, 0, 0]
