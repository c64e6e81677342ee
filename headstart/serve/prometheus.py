"""What a server counts, as Prometheus reads it."""

from __future__ import annotations

from typing import final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
BATCHES = (1, 2, 4, 8, 12, 16, 24, 32, 64, 128)


@final
class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self.requests = Counter("headstart_requests", "Requests answered.", ["method", "path", "status"], registry=own)
        self.seconds = Histogram(
            "headstart_request_seconds", "From a request's head to its answer.", ["path"], buckets=SECONDS, registry=own
        )
        self.pictures = Counter("headstart_pictures", "Pictures that were looked at.", registry=own)
        self.faults = Counter("headstart_faults", "Pictures that could not be read.", registry=own)
        self.queue = Gauge("headstart_queue", "Pictures that wait or are worked on.", registry=own)
        self.side_queue = Gauge(
            "headstart_side_queue", "Requests of other kinds that wait or are worked on.", ["kind"], registry=own
        )
        self.batch = Histogram("headstart_batch_pictures", "Pictures run together.", buckets=BATCHES, registry=own)
        self.decoding = Histogram("headstart_decode_seconds", "To decode a picture.", buckets=SECONDS, registry=own)
        self.running = Histogram("headstart_engine_seconds", "To run a batch.", buckets=SECONDS, registry=own)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self.registry)
