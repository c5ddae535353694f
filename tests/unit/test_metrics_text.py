"""Our text of the metrics is prometheus-client's, byte for byte, whatever names, labels and numbers it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from rebalance_tasks.control.metering.table import METRICS
from rebalance_tasks.control.metering.text import MetricsText
from rebalance_tasks.control.metrics import _histogram, _plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebalance_tasks.control.metering.readings import Histogram, Samples

#: Labels of nodes and zones are names of people's own; quotes, newlines and backslashes have to be escaped.
WORDS = st.text(alphabet=st.one_of(st.sampled_from('\\"\n{}=, '), st.characters(codec="utf-8")), max_size=12)
NUMBERS = st.one_of(st.integers(-(2**63), 2**63), st.floats(), st.just(1e21), st.just(0.1))


@st.composite
def readings(draw: st.DrawFn) -> tuple[Samples, dict[str, list[Histogram]]]:
    samples: Samples = {}
    histograms: dict[str, list[Histogram]] = {}
    for metric in draw(st.lists(st.sampled_from(METRICS), unique_by=lambda found: found.name, max_size=6)):
        rows = draw(st.lists(st.tuples(*[WORDS] * len(metric.labels)), max_size=4, unique=True))
        if metric.kind == "histogram":
            bounds = [("0.5", draw(NUMBERS)), ("+Inf", draw(NUMBERS))]
            histograms[metric.name] = [(row, bounds, draw(NUMBERS)) for row in rows]
        else:
            samples[metric.name] = [(row, draw(NUMBERS)) for row in rows]
    return samples, histograms


class Given(Collector):
    """The library's own way with the same readings."""

    def __init__(self, families: list[Any]) -> None:
        self.families = families

    def collect(self) -> Iterator[Any]:
        yield from self.families


@given(fleet=WORDS, scrapes=st.lists(readings(), min_size=1, max_size=3))
def test_the_text_is_the_librarys_at_every_scrape(
    fleet: str, scrapes: list[tuple[Samples, dict[str, list[Histogram]]]]
) -> None:
    text = MetricsText(fleet)
    for samples, found in scrapes:
        histograms = {name: _histogram(name, rows, fleet) for name, rows in found.items()}
        families = [
            histograms.get(metric.name) or _plain(metric.name, samples[metric.name], fleet)
            for metric in METRICS
            if metric.name in samples or metric.name in histograms
        ]
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Given(families))
        assert text.write(samples, histograms) == generate_latest(registry)


def test_nodes_that_have_gone_are_forgotten() -> None:
    text = MetricsText("f")
    for node in ("a", "b"):
        text.write({"rebalance_node_used_bytes": [((node,), 1)]}, {})
    assert set(text._heads["rebalance_node_used_bytes"]) == {("b",)}
