"""What Prometheus reads at `/metrics`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tfrs_negatives.serve.answers import Batcher
from tfrs_negatives.serve.deployment import Deployment

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The measurements of one service.

    Attributes:
        registry: what is read.
        requests: by method, route and status.
        seconds: from the first byte of a request to the last of its answer, by route.
        batch_size: requests that were answered together, by run.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tfrs_negatives_requests",
            "Requests that were answered.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "tfrs_negatives_request_seconds",
            "Time to answer a request.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch_size = Histogram(
            "tfrs_negatives_batch_size",
            "Requests that were answered together.",
            ["run"],
            buckets=_SIZES,
            registry=self.registry,
        )

    def watch(self, services: Sequence[tuple[Deployment, Batcher[Any, Any]]]) -> None:
        """Adds what is read off the runs in service."""
        self.registry.register(_ServedRuns(services))


class _ServedRuns(Collector):
    def __init__(self, services: Sequence[tuple[Deployment, Batcher[Any, Any]]]) -> None:
        self._services = services

    def collect(self) -> Iterable[Metric]:
        """Returns the state of each run."""
        gauges = {
            "ready": "Whether an export is loaded.",
            "queue_length": "Requests that wait for the next batch.",
            "items": "Items that can be found.",
            "upserted_items": "Items that stand in for the export, or beside it.",
            "deleted_items": "Items of the export that are gone.",
        }
        counters = {
            "export_swaps": "Exports that took over.",
            "refused_exports": "Exports that were damaged.",
        }
        families = {
            n: GaugeMetricFamily(f"tfrs_negatives_{n}", text, labels=["run"])
            for n, text in gauges.items()
        } | {
            n: CounterMetricFamily(f"tfrs_negatives_{n}", text, labels=["run"])
            for n, text in counters.items()
        }
        for deployment, batcher in self._services:
            for name, value in _state(deployment, batcher):
                families[name].add_metric([deployment.name], value)
        return families.values()


def _state(deployment: Deployment, batcher: Batcher[Any, Any]) -> Iterator[tuple[str, float]]:
    yield "ready", float(deployment.is_ready)
    yield "queue_length", batcher.num_waiting
    yield "export_swaps", deployment.num_swaps
    yield "refused_exports", deployment.num_refused
    if deployment.is_ready:
        index = deployment.served.index
        yield "items", len(index)
        yield "upserted_items", index.num_upserted
        yield "deleted_items", index.num_deleted
