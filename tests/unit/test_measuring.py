"""Where measures of single objects come from: the host's answers, checked; datasets; the node's own for what is not known."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import EntryPoint, EntryPoints
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.control import measuring, providers
from rebalance_tasks.control.measuring import DIMENSIONS, with_provided
from rebalance_tasks.core import gravity
from rebalance_tasks.core.errors import ConfigurationError, InvalidInventory
from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.core.keeping.candidates import thinned
from rebalance_tasks.core.measures import with_datasets, with_told
from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.core.optimizer import GravityProviders
from rebalance_tasks.core.options import RebalancerOptions
from rebalance_tasks.core.planner import plan_rebalance
from rebalance_tasks.core.planning.candidates import gravity_of
from rebalance_tasks.core.planning.state import Fleet
from rebalance_tasks.core.rule import Rule
from rebalance_tasks.settings.model import Gravity, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from decimal import Decimal

NAN = float("nan")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
OPTIONS = RebalancerOptions()
NODES = [
    NodeDescriptor(node_id="n1", capacity_bytes=1_000, egress_cost_per_gb="0.06", latency_ms=50, region="eu"),
    NodeDescriptor(node_id="n2", capacity_bytes=1_000, region="us"),
]


def holding(*keys: str, size: int = 10, **columns: Any) -> Inventory:
    table = {"object_key": list(keys), "size_bytes": [size] * len(keys), "node_id": ["n1"] * len(keys)}
    return Inventory.from_arrow(pa.table(table | columns))


def scores(inventory: Inventory, prices: dict[tuple[str, str], Decimal] | None = None) -> list[float]:
    fleet = Fleet(NODES, inventory, OPTIONS, reserved_bytes={}, prices=prices or {})
    found: list[float] = gravity_of(inventory, fleet, OPTIONS).tolist()
    return found


# -- what a host answers ----------------------------------------------------------------------------------------------
class Host:
    """Answers every dimension with what a test wants."""

    def __init__(self, answer: Callable[[Sequence[str]], Any]) -> None:
        self.answer = answer
        self.asked: list[tuple[Any, ...]] = []

    def _said(self, *asked: Any) -> Any:
        self.asked.append(asked)
        return self.answer(asked[0])

    def reads_and_writes_per_hour(self, keys: Sequence[str]) -> Any:
        found = self._said(keys)
        return found if isinstance(found, tuple) else (found, 0.0)

    def colocated_dependencies(self, keys: Sequence[str], nodes: Sequence[str]) -> Any:
        return self._said(keys, nodes)

    egress_cost_per_gb = latency_ms = compliant = colocated_dependencies


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    """Install what an entry point named ``host`` offers."""

    def offer(found: object) -> None:
        entry = EntryPoint(name="host", value="host:it", group=providers.PROVIDERS)
        monkeypatch.setattr(providers, "entry_points", lambda group: EntryPoints([entry]).select(group=group))
        monkeypatch.setattr(EntryPoint, "load", lambda _: found)
        measuring._opened.cache_clear()

    return offer


@pytest.mark.parametrize("setting", DIMENSIONS)
def test_a_host_is_asked_for_all_keys_some_at_a_time(
    offered: Callable[[object], None], monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setattr(measuring, "BLOCK_ROWS", 2)
    host = Host(lambda keys: [float(ord(key) - ord("a")) / 10 for key in keys])
    offered(host)
    found = with_provided(holding("a", "b", "c"), setting, "provider:host")
    column = getattr(found, DIMENSIONS[setting].columns[0])
    assert column.tolist() == pytest.approx([0, 0, 0] if setting == "colocation" else [0.0, 0.1, 0.2])
    assert [asked[0] for asked in host.asked] == [["a", "b"], ["c"]]
    assert [asked[1:] for asked in host.asked] == ([(), ()] if setting == "access" else [(["n1", "n1"],), (["n1"],)])


def test_every_dimension_of_the_optimizer_can_be_answered_in_a_check() -> None:
    assert {"location", *DIMENSIONS} == set(GravityProviders.__dataclass_fields__)
    assert set(DIMENSIONS) == set(Gravity.model_fields)
    assert all(column in holding().__dict__ for dimension in DIMENSIONS.values() for column in dimension.columns)


def test_what_the_inventory_says_goes_before_what_a_host_says(offered: Callable[[object], None]) -> None:
    offered(Host(lambda _: 1.0))
    told = holding("a", latency_ms=[7.0])
    assert with_provided(told, "latency", "provider:host") is told


def test_a_class_is_made_once(offered: Callable[[object], None]) -> None:
    made = []

    class Counting(Host):
        def __init__(self) -> None:
            super().__init__(lambda _: 0.5)
            made.append(self)

    offered(Counting)
    for _ in range(3):
        with_provided(holding("a"), "egress", "provider:host")
    assert len(made) == 1


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda _: [1.0], r"answered shape \(1,\) for 2 objects"),
        (lambda _: [0.0, -1.0], r"answered -1\.0 for 'b'"),
        (lambda _: [float("inf"), 0.0], r"answered inf for 'a'"),
        (lambda _: ["x", "y"], "what is no column of numbers"),
        (lambda keys: keys[9], "failed: IndexError"),
    ],
)
@pytest.mark.parametrize("setting", DIMENSIONS)
def test_an_answer_that_makes_no_sense_is_refused_with_its_provider(
    offered: Callable[[object], None], setting: str, answer: Callable[[Any], Any], told: str
) -> None:
    offered(Host(answer))
    with pytest.raises(ConfigurationError, match=told) as caught:
        with_provided(holding("a", "b"), setting, "provider:host")
    assert f"[gravity] {setting} = 'provider:host'" in str(caught.value)


@pytest.mark.parametrize(("answer", "told"), [((1.0,), "1 columns for reads_per_hour and"), (("x" * 3), "no method")])
def test_a_provider_of_another_shape_is_refused(offered: Callable[[object], None], answer: Any, told: str) -> None:
    offered(Host(lambda _: answer) if isinstance(answer, tuple) else answer)
    with pytest.raises(ConfigurationError, match=told):
        with_provided(holding("a"), "access", "provider:host")


def test_a_class_that_cannot_be_made_is_refused(offered: Callable[[object], None]) -> None:
    offered(Host)
    with pytest.raises(ConfigurationError, match=r"Host\(\) failed: TypeError"):
        with_provided(holding("a"), "latency", "provider:host")


@pytest.mark.parametrize("setting", ["colocation", "egress", "latency", "compliance"])
def test_a_source_that_is_no_word_and_no_provider_is_refused(setting: str) -> None:
    with pytest.raises(ValueError, match="or 'provider:<name>'"):
        Gravity.model_validate({setting: "somewhere"})
    assert Gravity.model_validate({setting: "provider:acme"}).provided == {setting: "provider:acme"}


def test_measures_of_a_host_do_not_follow_from_a_listing() -> None:
    assert Gravity(access="times", colocation="folder").follows_listing
    assert not Gravity(access="atime").follows_listing, "reading shows in no folder"
    assert not Gravity(access="/var/log/s3").follows_listing
    assert not Gravity(egress="provider:acme").follows_listing
    assert Settings().gravity.follows_listing


# -- what is not known ------------------------------------------------------------------------------------------------
measure = st.one_of(st.just(NAN), st.floats(0, 300))


@given(st.lists(st.tuples(measure, measure, measure, st.sampled_from([NAN, 0.0, 1.0])), min_size=1, max_size=8))
def test_a_measure_that_is_not_known_is_the_nodes_own(rows: list[tuple[float, float, float, float]]) -> None:
    reads, price, latency, inside = (np.array(column) for column in zip(*rows, strict=True))
    keys = [f"k{number}" for number in range(len(rows))]
    plain = holding(*keys, required_regions=pa.array([["eu"]] * len(keys), pa.list_(pa.string())))
    told = with_told(plain, reads_per_hour=reads, egress_cost_per_gb=price, latency_ms=latency, compliant=inside)
    expected = gravity.composite(
        np.nan_to_num(reads),
        0.0,
        np.where(np.isnan(price), 0.06, price),
        np.where(np.isnan(latency), 50.0, latency),
        np.where(np.isnan(inside), 1.0, inside),
        OPTIONS.scoring_weights,
    )
    assert scores(told) == pytest.approx(expected.tolist())
    again = Inventory.from_arrow(told.to_arrow())
    assert scores(again) == scores(told), "columns survive a table"
    kept, _ = thinned(NODES[0], told, most=len(rows), options=OPTIONS, now=NOW)
    assert scores(kept) == scores(told), "and a survey's candidates"


def test_nothing_known_of_an_object_takes_the_documented_defaults() -> None:
    bare = [node.model_copy(update={"egress_cost_per_gb": 0, "latency_ms": None}) for node in NODES]
    told = with_told(holding("a"), compliant=np.array([NAN]))
    fleet = Fleet(bare, told, OPTIONS, reserved_bytes={}, prices={})
    weights = OPTIONS.scoring_weights.normalized()
    assert gravity_of(told, fleet, OPTIONS).tolist() == [pytest.approx(weights.latency * gravity.LATENCY_UNKNOWN)]


def test_columns_of_a_file_say_the_same_as_a_host() -> None:
    columns: dict[str, Any] = {"egress_cost_per_gb": [0.12, None], "latency_ms": [None, 10], "compliant": [True, None]}
    found = holding("a", "b", **columns)
    told = with_told(
        holding("a", "b"),
        egress_cost_per_gb=np.array([0.12, NAN]),
        latency_ms=np.array([NAN, 10.0]),
        compliant=np.array([1.0, NAN]),
    )
    assert scores(found) == scores(told)


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("egress_cost_per_gb", -0.1, r"row 0 \('a'\): egress_cost_per_gb -0\.1 lies outside"),
        ("latency_ms", float("inf"), r"latency_ms inf lies outside"),
        ("compliant", 2.0, r"compliant 2\.0 lies outside \[0, 1\]"),
        ("compliant", "yes", "expected a number"),
    ],
)
def test_a_measure_that_makes_no_sense_is_refused_with_its_row(column: str, value: object, told: str) -> None:
    with pytest.raises(InvalidInventory, match=told):
        holding("a", **dict[str, Any]({column: [value]}))


def test_a_column_of_regions_that_requires_none_says_nothing() -> None:
    nothing = pa.array([None, []], pa.list_(pa.string()))
    bare = holding("a", "b", reads_per_hour=[1.0, 9.0])
    told = holding("a", "b", reads_per_hour=[1.0, 9.0], required_regions=nothing)
    assert scores(told) == scores(bare)


# -- which objects leave ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("column", "held", "free"),
    [
        ("reads_per_hour", 5_000.0, 0.0),
        ("writes_per_hour", 5_000.0, 0.0),
        ("colocated_dependencies", 10.0, 0.0),
        ("egress_cost_per_gb", 0.12, 0.0),
        ("latency_ms", 0.0, 500.0),
        ("compliant", 1.0, 0.0),
    ],
)
def test_what_a_measure_holds_stays_and_the_others_leave(column: str, held: float, free: float) -> None:
    keys = [f"k{number:02}" for number in range(60)]
    values = np.where(np.arange(60) % 2 == 0, held, free)
    plan = plan_rebalance(NODES, with_told(holding(*keys), **{column: values}), options=OPTIONS)
    assert plan.imbalance_after <= OPTIONS.effective_target
    assert {int(move.object_key[1:]) % 2 for move in plan.moves} == {1}


# -- datasets ---------------------------------------------------------------------------------------------------------
def test_objects_of_a_dataset_hold_each_other_on_their_node() -> None:
    keys = ["films/a/1", "films/b/2", "films\n/x", "top", "loose/1", "x/loose/2"]
    there = Inventory.from_arrow(pa.table({"object_key": ["films/z"], "size_bytes": [1], "node_id": ["n2"]}))
    rules = [Rule(pattern="*", pinned=True), Rule(pattern="*loose*", dataset="set"), Rule(pattern="*", dataset="")]
    found = with_datasets(Inventory.concat([holding(*keys), there]), rules)
    assert found.colocated_dependencies is not None
    assert found.colocated_dependencies.tolist() == [1, 1, 0, 0, 1, 1, 0]


def test_the_first_rule_that_names_a_dataset_counts_and_names_bind_rules_together() -> None:
    rules = [Rule(pattern="a*", dataset="one"), Rule(pattern="*b", dataset="two"), Rule(pattern="c", dataset="one")]
    found = with_datasets(holding("ab", "xb", "a", "c", "d"), rules)
    assert found.colocated_dependencies is not None
    assert found.colocated_dependencies.tolist() == [2, 0, 2, 2, 0]
    told = holding("a", colocated_dependencies=[5])
    assert with_datasets(told, rules) is told
