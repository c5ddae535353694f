"""The metrics of a fleet, computed from Redis at each scrape.

The truth lies in Redis, so it does not matter which process serves it, nor how many there are: prefork needs no shared
directory, a worker that dies takes no count along, and two exporters say the same.

    registry = CollectorRegistry(auto_describe=False)
    registry.register(FleetCollector(context, queue_depths))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import (
    Metric as Family,
)
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from rebalance_tasks.control.metering import readings
from rebalance_tasks.control.metering.table import METRICS
from rebalance_tasks.control.metering.text import MetricsText
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.control.metering.readings import Histogram, QueueDepths, Sample, Samples

log = get_logger(__name__)

_BY_NAME: Final = {metric.name: metric for metric in METRICS}


class FleetCollector(Collector):
    """Serves `METRICS` to a prometheus registry."""

    def __init__(self, context: FleetContext, queue_depths: QueueDepths) -> None:
        """Read from this fleet.

        Args:
            context: the fleet.
            queue_depths: counts the messages that wait on the broker.
        """
        self._context = context
        self._depths = queue_depths
        # Settings never change, and the digest of a thousand nodes costs as much as all the rest of a scrape.
        self._digest = context.settings.digest()
        self._text = MetricsText(context.settings.fleet)

    def collect(self) -> Iterator[Family]:
        """Read everything once. Without Redis only ``rebalance_redis_up 0`` is said, so that an alert can tell why."""
        fleet = self._context.settings.fleet
        samples, histograms = self._read()
        for metric in METRICS:
            if metric.name in samples:
                yield _plain(metric.name, samples[metric.name], fleet)
            elif metric.name in histograms:
                yield histograms[metric.name]

    def text(self) -> bytes:
        """Return the same as Prometheus' text, at half the cost."""
        return self._text.write(*self._read())

    def _read(self) -> tuple[Samples, dict[str, Family]]:
        try:
            samples, histograms = readings.read(self._context, self._depths, digest=self._digest)
        except (RedisError, OSError) as exc:
            log.warning("metrics.redis_away", error=str(exc))
            return {"rebalance_redis_up": [((), 0.0)]}, {}
        fleet = self._context.settings.fleet
        return samples, {name: _histogram(name, found, fleet) for name, found in histograms.items()}


def _plain(name: str, samples: Iterable[Sample], fleet: str) -> Family:
    metric = _BY_NAME[name]
    kind: Any = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family: Family = kind(name, metric.help, labels=("fleet", *metric.labels))
    for labels, value in samples:
        family.add_metric((fleet, *labels), value)  # type: ignore[attr-defined]
    return family


def _histogram(name: str, found: Iterable[Histogram], fleet: str) -> Family:
    metric = _BY_NAME[name]
    family = HistogramMetricFamily(name, metric.help, labels=("fleet", *metric.labels))
    for labels, buckets, total_seconds in found:
        family.add_metric((fleet, *labels), buckets=buckets, sum_value=total_seconds)
    return family
