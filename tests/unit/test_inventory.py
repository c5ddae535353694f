"""Rows are validated on the way in, a refusal names the row, and what comes out reads back the same."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.core.errors import InvalidInventory
from rebalance_tasks.core.inventory import UNKNOWN_TIME, Inventory


def table(**columns: object) -> pa.Table:
    base: dict[str, object] = {"object_key": ["a", "b", "c"], "size_bytes": [1, 2, 3], "node_id": ["n1", "n1", "n2"]}
    return pa.table(base | columns)


def test_a_plain_table_is_read() -> None:
    inventory = Inventory.from_arrow(table())
    assert len(inventory) == 3
    assert inventory.used_bytes() == {"n1": 3, "n2": 3}
    assert inventory.node_ids == ("n1", "n2")
    assert inventory.key(2) == "c"
    assert inventory.gravity is None
    assert not inventory.ambiguous.any()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"size_bytes": [1, -2, 3]}, r"row 1 \('b'\): size_bytes -2 is negative"),
        ({"size_bytes": [1, 2, None]}, r"row 2 \('c'\): size_bytes is missing"),
        ({"size_bytes": [1.0, float("nan"), 3.0]}, r"row 1 .*not finite"),
        ({"size_bytes": [1.0, float("inf"), 3.0]}, r"row 1 .*not finite"),
        ({"size_bytes": [1.0, 2.5, 3.0]}, r"row 1 .*not a whole number"),
        ({"size_bytes": ["1", "2", "3"]}, r"'size_bytes' has type string, expected int64"),
        ({"size_bytes": [True, False, True]}, r"'size_bytes' has type bool"),
        ({"size_bytes": pa.array([1, 2, 2**64 - 1], pa.uint64())}, r"column 'size_bytes'"),
        ({"size_bytes": [2**62, 2**62, 3]}, r"add up to 9223372036854775811"),
        ({"object_key": ["a", None, "c"]}, r"row 1: object_key is missing"),
        ({"object_key": ["a", "b", ""]}, r"row 2 \(''\): object_key is empty"),
        ({"object_key": [1, 2, 3]}, r"'object_key' has type int64, expected string"),
        ({"node_id": ["n1", None, "n1"]}, r"row 1 \('b'\): node_id is missing"),
        ({"node_id": [1, 2, 3]}, r"'node_id' has type int64"),
        ({"gravity": [0.0, 1.5, 0.2]}, r"row 1 \('b'\): gravity 1.5 lies outside \[0, 1\]"),
        ({"gravity": [0.0, -0.1, 0.2]}, r"row 1 .*outside"),
        ({"gravity": [0.0, 0.1, float("nan")]}, r"row 2 .*outside"),
        ({"gravity": ["high", "low", "low"]}, r"'gravity' has type string, expected a number"),
        ({"reads_per_hour": [0.0, -1.0, 0.2]}, r"row 1 .*reads_per_hour"),
        ({"colocated_dependencies": [0, -1, 2]}, r"row 1 .*colocated_dependencies -1 is negative"),
        ({"pinned": ["yes", "no", "no"]}, r"'pinned' has type string, expected bool"),
        ({"last_moved_utc": ["now", "then", "soon"]}, r"'last_moved_utc' has type string, expected a timestamp"),
        ({"mtime_ns": [1.0, 2.0, 3.0]}, r"'mtime_ns' has type double"),
        ({"required_storage_class": ["hot", "golden", None]}, r"row 1 .*'golden' is none of hot"),
        ({"required_regions": ["eu", "us", "eu"]}, r"'required_regions' has type string, expected list"),
        ({"required_regions": [["eu"], ["eu", None], []]}, r"row 1 .*holds a missing value"),
        ({"pined": [True, False, False]}, r"'pined' is not known; did you mean 'pinned'"),
    ],
)
def test_an_impossible_row_or_column_is_refused_by_name(columns: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInventory, match=message):
        Inventory.from_arrow(table(**columns))


def test_a_missing_column_is_refused() -> None:
    with pytest.raises(InvalidInventory, match="'size_bytes' is missing"):
        Inventory.from_arrow(table().drop_columns(["size_bytes"]))


def test_the_same_object_twice_on_one_node_is_refused_naming_the_second_row() -> None:
    with pytest.raises(InvalidInventory, match=r"row 2 \('a'\).*listed twice on node 'n1'"):
        Inventory.from_arrow(table(object_key=["a", "b", "a"], node_id=["n1", "n1", "n1"]))


def test_a_key_on_two_nodes_is_ambiguous_not_refused() -> None:
    inventory = Inventory.from_arrow(table(object_key=["a", "b", "a"]))
    assert inventory.ambiguous.tolist() == [True, False, True]
    assert inventory.ambiguous_keys() == ["a"]


def test_nulls_in_optional_columns_mean_unknown_or_no_requirement() -> None:
    moment = datetime(2024, 5, 1, tzinfo=UTC)
    inventory = Inventory.from_arrow(
        table(
            gravity=[None, 0.5, 1.0],
            pinned=[None, True, False],
            replica_group=["g", None, ""],
            required_regions=[["us", "eu", "eu"], [], None],
            required_storage_class=[None, "hot", None],
            last_moved_utc=[moment, None, None],
            mtime_ns=[None, 5, 7],
        ),
    )
    assert inventory.gravity is not None
    assert inventory.gravity.tolist() == [0.0, 0.5, 1.0]
    assert inventory.pinned is not None
    assert inventory.pinned.tolist() == [False, True, False]
    assert inventory.replica_group is not None
    assert inventory.replica_group.codes.tolist() == [0, -1, -1]
    assert inventory.required_regions is not None
    assert inventory.required_regions.codes.tolist() == [0, -1, -1]
    assert inventory.required_regions.values == (("eu", "us"),)
    assert inventory.required_storage_class is not None
    assert inventory.required_storage_class.codes.tolist() == [-1, 0, -1]
    assert inventory.last_moved_ns is not None
    assert inventory.last_moved_ns.tolist() == [int(moment.timestamp()) * 10**9, UNKNOWN_TIME, UNKNOWN_TIME]
    assert inventory.mtime_ns is not None
    assert inventory.mtime_ns.tolist() == [UNKNOWN_TIME, 5, 7]


def test_everything_reads_back_from_its_own_table() -> None:
    first = Inventory.from_arrow(
        table(
            gravity=[0.1, 0.5, 1.0],
            reads_per_hour=[1, 2, 3],
            writes_per_hour=[1.0, 2.0, 3.5],
            colocated_dependencies=[0, 1, None],
            pinned=[False, True, False],
            replica_group=["g", None, "h"],
            required_regions=[["eu", "us"], [], ["us"]],
            required_storage_class=[None, "hot", None],
            last_moved_utc=[datetime(2024, 5, 1, tzinfo=UTC), None, None],
            last_access_utc=pa.array([None, 5, None], pa.timestamp("us")),
            mtime_utc=pa.array([1, 2, None], pa.timestamp("s", "Europe/Berlin")),
        ),
    )
    again = Inventory.from_arrow(first.to_arrow())
    assert again.to_arrow().equals(first.to_arrow())
    assert again.to_arrow().schema.field("object_key").type == pa.string()
    assert again.mtime_ns is not None
    assert again.mtime_ns.tolist() == [10**9, 2 * 10**9, UNKNOWN_TIME]


def test_dictionary_chunked_and_sliced_columns_are_read() -> None:
    whole = pa.concat_tables([table(), table(object_key=["d", "e", "f"], node_id=["n0", "n2", "n1"])])
    whole = whole.set_column(2, "node_id", whole.column("node_id").dictionary_encode())
    inventory = Inventory.from_arrow(whole.slice(1))
    assert inventory.node_ids == ("n0", "n1", "n2")
    assert inventory.used_bytes() == {"n0": 1, "n1": 5, "n2": 5}
    assert [inventory.key(row) for row in range(5)] == ["b", "c", "d", "e", "f"]


def test_an_empty_inventory_is_an_inventory() -> None:
    for empty in (
        Inventory.from_arrow(pa.table({"object_key": [], "size_bytes": [], "node_id": []})),
        Inventory.from_listings({}),
        Inventory.concat([]),
        Inventory.from_columns("n1", [], np.empty(0, np.int64)),
    ):
        assert len(empty) == 0
        assert sum(empty.used_bytes().values()) == 0
        assert not empty.ambiguous.any()
        assert len(Inventory.from_arrow(empty.to_arrow())) == 0


def test_a_foreign_column_is_ignored_and_named() -> None:
    assert Inventory.from_arrow(table(owner=["x", "y", "z"])).ignored_columns == ("owner",)


def test_listings_of_nodes_join() -> None:
    one = Inventory.from_columns("n1", ["a", "b"], np.array([1, 2]), np.array([10, 20]))
    two = Inventory.from_columns("n2", ["b", "c"], np.array([3, 4]))
    joined = Inventory.concat([one, two])
    assert joined.used_bytes() == {"n1": 3, "n2": 7}
    assert joined.ambiguous_keys() == ["b"]
    assert joined.mtime_ns is not None
    assert joined.mtime_ns.tolist() == [10, 20, UNKNOWN_TIME, UNKNOWN_TIME]
    at_once = Inventory.from_listings(
        {"n2": (["b", "c"], np.array([3, 4]), None), "n1": (["a", "b"], np.array([1, 2]), np.array([10, 20]))},
    )
    assert at_once.to_arrow().equals(joined.to_arrow())
    with pytest.raises(InvalidInventory, match="twice"):
        Inventory.concat([one, one])


def test_a_key_that_is_not_text_is_refused_naming_the_row() -> None:
    with pytest.raises(InvalidInventory, match=r"row 1: object_key '\\udcff' is not valid Unicode"):
        Inventory.from_columns("n1", ["a", "\udcff"], np.array([1, 2]))


def test_listings_of_unequal_length_are_refused() -> None:
    with pytest.raises(InvalidInventory, match="differ in length"):
        Inventory.from_columns("n1", ["a", "b"], np.array([1]))


def test_columns_are_read_only() -> None:
    inventory = Inventory.from_arrow(table(gravity=[0.0, 0.5, 1.0]))
    assert inventory.gravity is not None
    for column in (inventory.size_bytes, inventory.node_index, inventory.ambiguous, inventory.gravity):
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 1


def test_used_bytes_is_exact_where_floats_are_not() -> None:
    inventory = Inventory.from_columns("n1", ["a", "b"], np.array([2**60, 1]))
    assert inventory.used_bytes() == {"n1": 2**60 + 1}


@given(
    rows=st.lists(
        st.tuples(st.text(min_size=1, max_size=4), st.integers(0, 2**40), st.sampled_from(["n1", "n2", "n3"])),
        unique_by=lambda row: (row[0], row[2]),
        max_size=30,
    ),
)
def test_any_valid_rows_survive_the_round_trip(rows: list[tuple[str, int, str]]) -> None:
    keys, sizes, nodes = [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]
    inventory = Inventory.from_arrow(
        pa.table(
            {
                "object_key": pa.array(keys, pa.string()),
                "size_bytes": pa.array(sizes, pa.int64()),
                "node_id": pa.array(nodes, pa.string()),
            }
        ),
    )
    assert [inventory.key(i) for i in range(len(rows))] == keys
    assert inventory.size_bytes.tolist() == sizes
    assert [inventory.node_ids[i] for i in inventory.node_index] == nodes
    assert inventory.ambiguous.tolist() == [keys.count(key) > 1 for key in keys]
    assert sum(inventory.used_bytes().values()) == sum(sizes)
