"""Placement against a slow reference that is written from the definitions, in plain Python integers and fractions.

Run as a script to rewrite the golden vectors from the reference. They must never change: data lies where they say.
"""

from __future__ import annotations

import functools
import itertools
import json
import random
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from rebalance_tasks.core import fixedlog, hashing
from rebalance_tasks.core.crush import CompiledFleet, CrushPlacementAlgorithm
from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.models import NodeDescriptor, NodeState

GOLDEN = Path(__file__).parent / "golden" / "placement.json"
LEVELS = ("zone", "rack", "host", "node")
MASK = 2**64 - 1


# --- the reference -------------------------------------------------------------------------------------------------


def ref_hash(*parts: str) -> int:
    data = b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in parts)
    return xxhash.xxh3_64(data).intdigest()


@functools.cache
def ref_edges() -> list[int]:
    with localcontext() as context:
        context.prec = 50
        edges = [int((-(Decimal(i) / 4096).ln() * 2**40).to_integral_value()) for i in range(1, 4097)]
    return [edges[0] + 2 * 2**40, *edges]


def ref_log(mixed: int) -> int:
    cell, step = divmod(mixed >> 32, 2**20)
    upper, lower = ref_edges()[cell], ref_edges()[cell + 1]
    return upper * 2**20 - (upper - lower) // 2 - (upper - lower) * step


def ref_mix(key: int, item: int, round_number: int) -> int:
    x = key ^ ((item + round_number * 0x9E3779B97F4A7C15) & MASK)
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    return ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK


def ref_path(node: NodeDescriptor) -> tuple[tuple[str, ...], ...]:
    host = (node.host, "") if node.host else ("", node.node_id)
    return (node.zone,), (node.zone, node.rack), (node.zone, node.rack, *host), (node.node_id,)


class Reference:
    """The rule as it is told in `crush_tree`, without a thought for speed."""

    def __init__(self, nodes: list[NodeDescriptor]) -> None:
        self.children: list[dict[tuple[str, ...], set[tuple[str, ...]]]] = [{}, {}, {}]
        self.weight: list[dict[tuple[str, ...], Fraction]] = [{}, {}, {}, {}]
        for node in nodes:
            if node.state is NodeState.ACTIVE and node.weight > 0:
                path = ref_path(node)
                for level in range(4):
                    self.weight[level][path[level]] = self.weight[level].get(path[level], Fraction(0)) + Fraction(
                        node.weight
                    )
                for level in range(3):
                    self.children[level].setdefault(path[level], set()).add(path[level + 1])

    def order(self, key: str, level: int, names: set[tuple[str, ...]], round_number: int) -> list[tuple[str, ...]]:
        weight = {name: self.weight[level][name] for name in names}
        heaviest = max(weight.values())
        scaled = {name: max(1, int(weight[name] / heaviest * 2**28 + Fraction(1, 2))) for name in names}
        if len(set(weight.values())) == 1:
            scaled = dict.fromkeys(names, 1)
        key_hash = xxhash.xxh3_64(key.encode()).intdigest()
        draw = {
            name: ref_log(ref_mix(key_hash, ref_hash(LEVELS[level], *name), round_number)) // scaled[name]
            for name in names
        }
        return sorted(names, key=lambda name: (draw[name], name))

    def place(self, key: str, count: int) -> list[str]:
        chosen: list[str] = []
        for level in (0, 1, 2):
            for round_number in itertools.count(1 if level else 0):
                names = {name for name, below in self.children[level].items() if len(below) > round_number}
                if not names or len(chosen) >= count:
                    break
                for name in self.order(key, level, names, round_number):
                    place = self.order(key, level + 1, self.children[level][name], 0)[round_number]
                    for below in range(level + 1, 3):
                        place = self.order(key, below + 1, self.children[below][place], 0)[0]
                    chosen.append(place[0])
        return chosen[:count]


def golden_fleet() -> list[NodeDescriptor]:
    shape = [(zone, rack, host) for zone in ("a", "b", "é") for rack in ("", "r1") for host in ("", "h1", "h2", "h1")]
    return [
        NodeDescriptor(node_id=f"n{i:02}", zone=zone, rack=rack, host=host, weight=(1.0, 2.5, 0.1, 4.0, 0.0)[i % 5])
        for i, (zone, rack, host) in enumerate(shape)
    ]


def golden_keys() -> list[str]:
    return ["", "a", "naïve/ключ/鍵.txt", "x" * 1024, *(f"bucket/{i % 7}/object-{i}" for i in range(96))]


def golden_vectors() -> dict[str, object]:
    rng = random.Random(7)
    mixed = [0, 1, 2**32 - 1, 2**32, 2**52 - 1, 2**52, 2**63, MASK, *(rng.getrandbits(64) for _ in range(56))]
    reference = Reference(golden_fleet())
    return {
        "key_hash": {key: str(xxhash.xxh3_64(key.encode()).intdigest()) for key in golden_keys()},
        "negative_log": {str(value): str(ref_log(value)) for value in mixed},
        "tree": {key: reference.place(key, 5) for key in golden_keys()},
    }


# --- the tests -----------------------------------------------------------------------------------------------------

names = st.sampled_from(["", "a", "b", "c"])
weights = st.sampled_from([0.0, 0.1, 0.5, 1.0, 1.0, 2.0, 3.7, 1000.0, 1e-12, 5e-324])
states = st.sampled_from([NodeState.ACTIVE] * 4 + [NodeState.DRAINING])


@st.composite
def fleets(draw: st.DrawFn) -> list[NodeDescriptor]:
    size = draw(st.integers(1, 14))
    nodes = [
        NodeDescriptor(
            node_id=f"n{i}",
            zone=draw(names),
            rack=draw(names),
            host=draw(names),
            weight=draw(weights),
            state=draw(states),
        )
        for i in range(size)
    ]
    return [*nodes, NodeDescriptor(node_id="always")]


@settings(max_examples=300, deadline=None)
@given(fleets(), st.lists(st.text(max_size=12), min_size=1, max_size=3), st.integers(1, 18))
def test_batch_and_single_placement_agree_with_the_reference(
    nodes: list[NodeDescriptor], keys: list[str], count: int
) -> None:
    rows = CrushPlacementAlgorithm().compute_placements(keys, count, nodes)
    fleet, reference = CompiledFleet(nodes), Reference(nodes)
    for key, row in zip(keys, rows.tolist(), strict=True):
        expected = reference.place(key, count)
        assert [nodes[i].node_id for i in row if i >= 0] == expected
        assert row[len(expected) :] == [-1] * (count - len(expected))
        assert [nodes[i].node_id for i in fleet.place(key, count)] == expected


@pytest.mark.parametrize("size", [23, 24, 300])
def test_wide_buckets_agree_with_the_reference(size: int) -> None:
    nodes = [NodeDescriptor(node_id=f"n{i}", weight=1 + i % 3) for i in range(size)]
    keys = [f"k{i}" for i in range(1700)]  # enough for the passes and for argmin in the last block
    rows = CrushPlacementAlgorithm().compute_placements(keys, 3, nodes)
    fleet = CompiledFleet(nodes)
    reference = Reference(nodes)
    for i in (0, 1699):
        expected = reference.place(keys[i], 3)
        assert [nodes[n].node_id for n in rows[i]] == expected
        assert [nodes[n].node_id for n in fleet.place(keys[i], 3)] == expected


def test_large_batches_cut_into_blocks_equal_the_single_way() -> None:
    nodes = [
        NodeDescriptor(node_id=f"n{i}", zone=f"z{i % 2}", rack=f"r{i % 6}", host=f"h{i % 18}", weight=1 + i % 4)
        for i in range(54)
    ]
    keys = [f"k{i}" for i in range(30_000)]
    fleet = CompiledFleet(nodes)
    rows = CrushPlacementAlgorithm().compute_placements(keys, 8, fleet)
    for i in range(0, len(keys), 101):
        assert tuple(rows[i]) == fleet.place(keys[i], 8)


def test_golden_vectors_still_hold() -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    fleet = golden_fleet()
    keys = golden_keys()
    assert {key: str(hashing.hash_key(key)) for key in keys} == golden["key_hash"]
    assert [str(value) for value in hashing.hash_keys(keys).tolist()] == list(golden["key_hash"].values())
    for mixed, expected in golden["negative_log"].items():
        assert str(fixedlog.negative_log(int(mixed))) == expected
    rows = CrushPlacementAlgorithm().compute_placements(keys, 5, fleet)
    assert {key: [fleet[i].node_id for i in row] for key, row in zip(keys, rows, strict=True)} == golden["tree"]


def test_reference_still_yields_the_golden_vectors() -> None:
    assert golden_vectors() == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_log_table_equals_one_made_with_decimal_arithmetic() -> None:
    table = fixedlog.log_table()
    assert [fixedlog.negative_log(cell << 52) for cell in range(4096)] == [ref_log(cell << 52) for cell in range(4096)]
    assert max(table.top) < 2**64
    assert min(table.slope) > 0


@given(st.integers(0, MASK), st.integers(0, MASK))
def test_negative_log_is_positive_and_falls_as_u_grows(one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert fixedlog.negative_log(low) >= fixedlog.negative_log(high) > 0
    assert (fixedlog.negative_log(low) > fixedlog.negative_log(high)) == (low >> 32 < high >> 32)


@given(
    st.lists(st.integers(0, MASK), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, MASK), st.integers(1, 2**28)), min_size=1, max_size=5),
    st.integers(0, 9),
)
def test_vector_draws_equal_scalar_draws(keys: list[int], items: list[tuple[int, int]], round_number: int) -> None:
    hashes = hashing.round_hashes([item for item, _ in items], round_number)
    out = np.empty((len(items), len(keys)), dtype=np.uint64)
    divisors = np.array([weight for _, weight in items], dtype=np.uint64)
    fixedlog.draws(np.array(keys, dtype=np.uint64), hashes, divisors, out, np.empty((2, *out.shape), dtype=np.uint64))
    assert out.tolist() == [[fixedlog.draw(key, item, weight, round_number) for key in keys] for item, weight in items]


@given(st.lists(st.floats(5e-324, 1e308), min_size=1, max_size=8), st.sampled_from([2, 3, 10**9 + 7]))
def test_weights_are_exact_and_normalised_ones_blind_to_scale(values: list[float], factor: int) -> None:
    exact = [fixedlog.exact_weight(value) for value in values]
    assert [Fraction(one, 2**1074) for one in exact] == [Fraction(value) for value in values]
    assert fixedlog.normalize_weights(exact[:1] * 3) == (1, 1, 1)
    assert fixedlog.normalize_weights(exact) == fixedlog.normalize_weights([one * factor for one in exact])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_arrow_numpy_and_list_of_keys_hash_alike(kind: pa.DataType) -> None:
    keys = ["", "a", "ключ", "a", "x" * 300]
    expected = [hashing.hash_key(key) for key in keys]
    array = pa.array(keys, type=pa.string()).cast(kind)
    for given_keys in (
        keys,
        tuple(keys),
        np.array(keys),
        np.array(keys, dtype=object),
        array,
        pa.chunked_array([array]),
    ):
        assert hashing.hash_keys(given_keys).tolist() == expected
    assert hashing.hash_keys(array.slice(1, 3)).tolist() == expected[1:4]
    assert hashing.hash_keys(np.array(expected, dtype=np.uint64)).tolist() == expected


def test_lone_surrogates_hash_alike_one_by_one_and_in_a_batch() -> None:
    assert hashing.hash_keys(["ok", "\udcff"]).tolist() == [hashing.hash_key("ok"), hashing.hash_key("\udcff")]


@pytest.mark.parametrize(
    "wrong",
    ["abc", ["a", 1], [b"a"], [None], np.zeros(2), np.zeros((2, 2), np.uint64), pa.array(["a", None]), pa.array([1])],
)
def test_what_is_no_batch_of_keys_is_refused(wrong: object) -> None:
    with pytest.raises(InvalidArgument, match="keys"):
        hashing.hash_keys(wrong)


def test_paths_that_join_to_the_same_text_hash_apart() -> None:
    assert hashing.hash_path("rack", "a", "bc") != hashing.hash_path("rack", "ab", "c")


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden_vectors(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
