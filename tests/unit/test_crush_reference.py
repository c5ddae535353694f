"""Both rules, both kernels, against slow references written from the definitions, in plain Python integers and fractions.

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
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from rebalance_tasks.core.crush import CompiledFleet, CrushPlacementAlgorithm
from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.models import NodeDescriptor, NodeState
from rebalance_tasks.core.placement import fixedlog, hashing, kernel_place, kernels_numba

if TYPE_CHECKING:
    from types import ModuleType

    from rebalance_tasks.core.crush import KernelName, RuleName

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


class TreeReference:
    """The rule as it is told in `placement.tree`, without a thought for speed."""

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
        total = sum(weight.values())
        evened = (level, round_number) == (0, 0)
        further = {name: own * (1 + own / total) if evened else own for name, own in weight.items()}
        key_hash = xxhash.xxh3_64(key.encode()).intdigest()
        log = {name: ref_log(ref_mix(key_hash, ref_hash(LEVELS[level], *name), round_number)) for name in names}
        divisors, further_divisors = scaled(weight), scaled(further)
        first = min(names, key=lambda name: (log[name] // divisors[name], name))
        return [first, *sorted(names - {first}, key=lambda name: (log[name] // further_divisors[name], name))]

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


def scaled(weight: dict[tuple[str, ...], Fraction]) -> dict[tuple[str, ...], int]:
    heaviest = max(weight.values())
    if len(set(weight.values())) == 1:
        return dict.fromkeys(weight, 1)
    return {name: max(1, int(own / heaviest * 2**28 + Fraction(1, 2))) for name, own in weight.items()}


class FlatReference:
    """The rule as it is told in `placement.flat`, without a thought for speed."""

    def __init__(self, nodes: list[NodeDescriptor]) -> None:
        self.paths = {
            node.node_id: ref_path(node) for node in nodes if node.state is NodeState.ACTIVE and node.weight > 0
        }
        weights = {
            node.node_id: rounded_to_32_bits(Fraction(node.weight)) for node in nodes if node.node_id in self.paths
        }
        heaviest = max(exponent for _, exponent in weights.values())
        self.divisors = {
            name: (mantissa, min(31, heaviest - exponent)) for name, (mantissa, exponent) in weights.items()
        }

    def place(self, key: str, count: int) -> list[str]:
        key_hash = xxhash.xxh3_64(key.encode()).intdigest()
        draws = {}
        for name, (mantissa, shift) in self.divisors.items():
            log = ref_log(ref_mix(key_hash, ref_hash("node", name), 0))
            draws[name] = (log // mantissa * 2**shift, self.paths[name])
        chosen: list[str] = []
        for level in range(4):
            for name in sorted(draws, key=draws.__getitem__):
                if self.paths[name][level] not in {self.paths[other][level] for other in chosen}:
                    chosen.append(name)
        return chosen[:count]


def rounded_to_32_bits(weight: Fraction) -> tuple[int, int]:
    """Return (m, e) with weight ≈ m · 2ᵉ and m of 32 bits; halves go to the even m."""
    exponent = 0
    while weight >= 2**32:
        weight, exponent = weight / 2, exponent + 1
    while weight < 2**31:
        weight, exponent = weight * 2, exponent - 1
    mantissa = round(weight)
    return (mantissa, exponent) if mantissa < 2**32 else (mantissa // 2, exponent + 1)


REFERENCES: dict[RuleName, type[TreeReference | FlatReference]] = {"tree": TreeReference, "flat": FlatReference}


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
    return {
        "key_hash": {key: str(xxhash.xxh3_64(key.encode()).intdigest()) for key in golden_keys()},
        "negative_log": {str(value): str(ref_log(value)) for value in mixed},
        **{
            rule: {key: made(golden_fleet()).place(key, 5) for key in golden_keys()}
            for rule, made in REFERENCES.items()
        },
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


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
@pytest.mark.parametrize("rule", ["flat", "tree"])
@settings(max_examples=400, deadline=None)
@given(nodes=fleets(), keys=st.lists(st.text(max_size=12), min_size=1, max_size=6), count=st.integers(1, 18))
def test_batch_and_single_placement_agree_with_the_reference(
    rule: RuleName, kernel: KernelName, nodes: list[NodeDescriptor], keys: list[str], count: int
) -> None:
    fleet, reference = CompiledFleet(nodes, rule=rule, kernel=kernel), REFERENCES[rule](nodes)
    rows = CrushPlacementAlgorithm().compute_placements(keys, count, fleet)
    for key, row in zip(keys, rows.tolist(), strict=True):
        expected = reference.place(key, count)
        assert [nodes[i].node_id for i in row if i >= 0] == expected
        assert row[len(expected) :] == [-1] * (count - len(expected))
        assert [nodes[i].node_id for i in fleet.place(key, count)] == expected


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
@pytest.mark.parametrize("rule", ["flat", "tree"])
@pytest.mark.parametrize("size", [23, 24, 300])
def test_fleets_without_domains_agree_with_the_reference(size: int, rule: RuleName, kernel: KernelName) -> None:
    nodes = [NodeDescriptor(node_id=f"n{i}", weight=1 + i % 3) for i in range(size)]
    keys = [f"k{i}" for i in range(1700)]  # enough for the passes and for argmin in the last block
    fleet = CompiledFleet(nodes, rule=rule, kernel=kernel)
    rows = CrushPlacementAlgorithm().compute_placements(keys, 3, fleet)
    reference = REFERENCES[rule](nodes)
    for i in (0, 1, 850, 1699):
        expected = reference.place(keys[i], 3)
        assert [nodes[n].node_id for n in rows[i]] == expected
        assert [nodes[n].node_id for n in fleet.place(keys[i], 3)] == expected


@pytest.mark.parametrize("rule", ["flat", "tree"])
@pytest.mark.parametrize("replicas", [1, 3, 8])
def test_kernels_agree_on_every_one_of_many_keys(rule: RuleName, replicas: int) -> None:
    nodes = [
        NodeDescriptor(node_id=f"n{i}", zone=f"z{i % 2}", rack=f"r{i % 6}", host=f"h{i % 18}", weight=0.3 + i % 4)
        for i in range(54)
    ]
    keys = [f"k{i}" for i in range(70_000)]  # several blocks, and shares of several threads
    in_numpy = CompiledFleet(nodes, rule=rule, kernel="numpy")
    rows = CrushPlacementAlgorithm().compute_placements(keys, replicas, in_numpy)
    for threads in (1, 3):
        compiled = CrushPlacementAlgorithm(rule=rule, kernel="numba", threads=threads)
        assert np.array_equal(compiled.compute_placements(keys, replicas, nodes), rows)
    for i in range(0, len(keys), 701):
        assert tuple(rows[i]) == in_numpy.place(keys[i], replicas)


def test_keys_beyond_the_bound_of_the_flat_rule_are_placed_as_well() -> None:
    # A zone of a millionth of the weight: no sample shows it, and every key needs it.
    nodes = [*(NodeDescriptor(node_id=f"n{i}", zone="ab"[i % 2]) for i in range(40))]
    nodes.append(NodeDescriptor(node_id="light", zone="c", weight=1e-6))
    keys = [f"k{i}" for i in range(300)]
    reference = FlatReference(nodes)
    for kernel in ("numpy", "numba"):
        rows = CrushPlacementAlgorithm(rule="flat", kernel=kernel).compute_placements(keys, 4, nodes)
        assert [[nodes[i].node_id for i in row] for row in rows] == [reference.place(key, 4) for key in keys]


def test_constants_compiled_into_the_kernels_are_those_of_numpy() -> None:
    for name in ("MIX_MUL_1", "MIX_MUL_2", "MIX_SHIFT_1", "MIX_SHIFT_2"):
        assert int(getattr(kernel_place, name)) == getattr(hashing, name)
    for name in ("CELL_SHIFT", "FRACTION_SHIFT", "FRACTION_MASK"):
        assert int(getattr(kernel_place, name)) == getattr(fixedlog, "_" + name)


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
def test_golden_vectors_still_hold(kernel: KernelName) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    nodes = golden_fleet()
    keys = golden_keys()
    assert {key: str(hashing.hash_key(key)) for key in keys} == golden["key_hash"]
    compiled = kernels_numba if kernel == "numba" else None
    assert [str(value) for value in hashing.hash_keys(keys, compiled).tolist()] == list(golden["key_hash"].values())
    for mixed, expected in golden["negative_log"].items():
        assert str(fixedlog.negative_log(int(mixed))) == expected
    for rule in REFERENCES:
        rows = CrushPlacementAlgorithm(rule=rule, kernel=kernel).compute_placements(keys, 5, nodes)
        assert {key: [nodes[i].node_id for i in row] for key, row in zip(keys, rows, strict=True)} == golden[rule]


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
    fixedlog.log_draws(np.array(keys, dtype=np.uint64), hashes, out, np.empty((2, *out.shape), dtype=np.uint64))
    fixedlog.divide(out, divisors, out)
    assert out.tolist() == [[fixedlog.draw(key, item, weight, round_number) for key in keys] for item, weight in items]


@given(st.lists(st.floats(5e-324, 1e308), min_size=1, max_size=8), st.sampled_from([2, 3, 10**9 + 7]))
def test_weights_are_exact_and_normalised_ones_blind_to_scale(values: list[float], factor: int) -> None:
    exact = fixedlog.exact_weights(values)
    assert [Fraction(one, exact[0]) for one in exact] == [Fraction(value) / Fraction(values[0]) for value in values]
    assert fixedlog.normalize_weights(exact[:1] * 3) == (1, 1, 1)
    assert fixedlog.normalize_weights(exact) == fixedlog.normalize_weights([one * factor for one in exact])


@given(st.lists(st.floats(5e-324, 1e308), min_size=1, max_size=8), st.integers(-20, 20))
def test_floating_weights_are_rounded_each_by_itself(values: list[float], power: int) -> None:
    mantissas, shifts = fixedlog.floating_weights(values)
    expected = [rounded_to_32_bits(Fraction(value)) for value in values]
    assert mantissas.tolist() == [mantissa for mantissa, _ in expected]
    heaviest = max(exponent for _, exponent in expected)
    assert shifts.tolist() == [min(31, heaviest - exponent) for _, exponent in expected]
    scaled = [value * 2.0**power for value in values]
    if all(1e-300 < value < 1e300 for value in (*values, *scaled)):
        assert [one.tolist() for one in fixedlog.floating_weights(scaled)] == [mantissas.tolist(), shifts.tolist()]


@pytest.mark.parametrize("compiled", [None, kernels_numba], ids=["xxhash", "numba"])
@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_arrow_numpy_and_list_of_keys_hash_alike(kind: pa.DataType, compiled: ModuleType | None) -> None:
    keys = ["", "a", "ключ", "a", "x" * 300, "with\0nul"]
    expected = [hashing.hash_key(key) for key in keys]
    array = pa.array(keys, type=pa.string()).cast(kind)
    for given_keys in (
        keys,
        tuple(keys),
        np.array(keys),
        np.array(keys, dtype=object),
        array,
        pa.chunked_array([array, array.slice(0, 0)]),
    ):
        assert hashing.hash_keys(given_keys, compiled).tolist() == expected
    assert hashing.hash_keys(array.slice(1, 3), compiled).tolist() == expected[1:4]
    assert hashing.hash_keys(np.array(expected, dtype=np.uint64)).tolist() == expected


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=260), st.binary(max_size=250).map(lambda data: data.decode("latin-1")))))
def test_hashes_of_batches_are_those_of_xxhash(keys: list[str]) -> None:
    expected = [xxhash.xxh3_64(key.encode("utf-8", "surrogatepass")).intdigest() for key in keys]
    assert hashing.hash_keys(keys, kernels_numba).tolist() == expected
    for compiled in (kernels_numba, None):
        assert hashing.hash_keys(pa.array(keys, pa.string()), compiled).tolist() == expected


def test_hashes_of_batches_are_those_of_xxhash_at_every_length() -> None:
    keys = [chr(32 + (i * 7 + length) % 90) * length for length in range(260) for i in range(5)]
    expected = hashing.hash_keys(keys).tolist()
    assert hashing.hash_keys(keys, kernels_numba).tolist() == expected
    assert hashing.hash_keys(pa.array(keys)).tolist() == expected


@pytest.mark.parametrize("compiled", [None, kernels_numba], ids=["xxhash", "numba"])
def test_lone_surrogates_hash_alike_one_by_one_and_in_a_batch(compiled: ModuleType | None) -> None:
    assert hashing.hash_keys(["ok", "\udcff"], compiled).tolist() == [
        hashing.hash_key("ok"),
        hashing.hash_key("\udcff"),
    ]


@pytest.mark.parametrize("compiled", [None, kernels_numba], ids=["xxhash", "numba"])
@pytest.mark.parametrize(
    "wrong",
    ["abc", ["a", 1], [b"a"], [None], np.zeros(2), np.zeros((2, 2), np.uint64), pa.array(["a", None]), pa.array([1])],
)
def test_what_is_no_batch_of_keys_is_refused(wrong: object, compiled: ModuleType | None) -> None:
    with pytest.raises(InvalidArgument, match="keys"):
        hashing.hash_keys(wrong, compiled)


def test_paths_that_join_to_the_same_text_hash_apart() -> None:
    assert hashing.hash_path("rack", "a", "bc") != hashing.hash_path("rack", "ab", "c")


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden_vectors(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
