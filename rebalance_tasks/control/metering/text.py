"""The metrics as text, written faster than prometheus-client writes them: most lines of a large fleet differ in a number only.

What stands before the number (name and labels of a node) is kept from scrape to scrape. The text is the same, byte for byte;
histograms, of which there are few, are left to the library.
"""

from __future__ import annotations

import gzip
from threading import Lock
from typing import TYPE_CHECKING, Final

from prometheus_client import generate_latest, make_wsgi_app
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, gzip_accepted
from prometheus_client.utils import floatToGoString

from rebalance_tasks.control.metering.table import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric as Family

    from rebalance_tasks.control.metering.readings import Sample, Samples
    from rebalance_tasks.control.metering.table import Metric
    from rebalance_tasks.control.metrics import FleetCollector

_number: Final[Callable[[float], str]] = floatToGoString
#: The text of 1,000 nodes shrinks to a tenth at this level, in a fifth of the time that the highest takes.
_GZIP_LEVEL: Final = 1


class MetricsText:
    """Writes one fleet's samples; used by several threads."""

    def __init__(self, fleet: str) -> None:
        """Write for this fleet; its name is a label of every line."""
        self._fleet = fleet
        self._lock = Lock()
        #: name of a metric → values of its labels → what stands before the number
        self._heads: dict[str, dict[tuple[str, ...], str]] = {}

    def write(self, samples: Samples, histograms: Mapping[str, Family]) -> bytes:
        """Return what `prometheus_client.generate_latest` would say of a registry that has these."""
        parts: list[str] = []
        with self._lock:
            for metric in METRICS:
                if metric.name in samples:
                    parts.append(f"# HELP {metric.name} {_line(metric.help)}\n# TYPE {metric.name} {metric.kind}\n")
                    parts += self._lines(metric, samples[metric.name])
                elif metric.name in histograms:
                    parts.append(generate_latest(_Only(histograms[metric.name])).decode())
        return "".join(parts).encode()

    def _lines(self, metric: Metric, samples: Iterable[Sample]) -> Iterator[str]:
        # Made anew at each scrape, so that nodes which have gone are forgotten.
        before = self._heads.get(metric.name, {})
        heads = self._heads[metric.name] = {}
        for labels, value in samples:
            head = heads[labels] = before.get(labels) or self._head(metric, labels)
            yield f"{head}{_number(value)}\n"

    def _head(self, metric: Metric, labels: tuple[str, ...]) -> str:
        named = sorted(zip(("fleet", *metric.labels), (self._fleet, *labels), strict=True))
        pairs = ",".join([f'{name}="{_value(text)}"' for name, text in named])
        return f"{metric.name}{{{pairs}}} "


class _Only:
    """A registry of one family."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def collect(self) -> Iterator[Family]:
        """Yield it."""
        yield self._family


def _line(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _value(text: str) -> str:
    return _line(text).replace('"', r"\"")


def metrics_app(collector: FleetCollector, registry: CollectorRegistry) -> WSGIApplication:
    """Return the WSGI application that Prometheus scrapes.

    The whole fleet goes out as plain text, whichever of Prometheus' formats is asked for: all its versions read it, and
    OpenMetrics would add nothing here. What is no GET, prometheus-client answers.
    """
    others: WSGIApplication = make_wsgi_app(registry)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "GET" or environ["PATH_INFO"] == "/favicon.ico":
            return others(environ, start_response)
        body, headers = collector.text(), [("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)]
        if gzip_accepted(environ.get("HTTP_ACCEPT_ENCODING", "")):
            body = gzip.compress(body, _GZIP_LEVEL)
            headers.append(("Content-Encoding", "gzip"))
        start_response("200 OK", [*headers, ("Content-Length", str(len(body)))])
        return [body]

    return app
