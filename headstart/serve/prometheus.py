"""Metrics of the server in Prometheus format."""

from __future__ import annotations

from typing import Final, final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

SECONDS_BUCKETS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
BATCH_BUCKETS: Final = (1, 2, 4, 8, 12, 16, 24, 32, 64, 128)


@final
class Metrics:
    """Counters, gauges and histograms of one server, in a separate registry."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()

        def histogram(name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, help, labels, buckets=buckets, registry=registry)

        self.requests = Counter(
            "headstart_requests", "Requests answered.", ["method", "path", "status"], registry=registry
        )
        self.seconds = histogram(
            "headstart_request_seconds", "Seconds from the request headers to the response.", SECONDS_BUCKETS, "path"
        )
        self.images = Counter("headstart_images", "Images received for classification.", registry=registry)
        self.unreadable = Counter("headstart_unreadable_images", "Images that could not be read.", registry=registry)
        self.queue = Gauge("headstart_queue", "Images that wait or are processed.", registry=registry)
        self.task_queue = Gauge(
            "headstart_task_queue", "Other requests that wait or are processed.", ["kind"], registry=registry
        )
        self.batch = histogram("headstart_batch_images", "Images per batch.", BATCH_BUCKETS)
        self.decoding = histogram("headstart_decode_seconds", "Seconds to decode an image.", SECONDS_BUCKETS)
        self.running = histogram("headstart_engine_seconds", "Seconds to run a batch.", SECONDS_BUCKETS)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)
