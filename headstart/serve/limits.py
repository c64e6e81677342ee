"""What a server takes on, and for how long: nothing that comes from outside is without a bound."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of a server.

    Attributes:
        body: bytes of one request's body; beyond, 413.
        held: bytes of the bodies of all requests under way; beyond, 503.
        images: pictures in one request; beyond, 413.
        pixels: of one picture, by its header; beyond, the picture alone is refused.
        queue: images to classify that wait or are worked on, of all requests; beyond, 503.
        side_queue: requests of each other kind (see ``service.Work``) that wait or are worked on; beyond, 503.
        connections: at a time; beyond, 503.
        head_seconds: until a connection has sent a request's head; then it is closed.
        body_seconds: until a request's body is there; then 408.
        request_seconds: from then until its answer; then 504.
        idle_seconds: that a connection is kept open between requests.
        drain_seconds: that requests under way get when the server is asked to stop.
        gather_ms: that a picture waits, in milliseconds, while others are being decoded that can run with it.
    """

    body: int = 64_000_000
    held: int = 256_000_000
    images: int = 64
    pixels: int = 50_000_000
    queue: int = 512
    side_queue: int = 16
    connections: int = 256
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    request_seconds: float = 30.0
    idle_seconds: float = 15.0
    drain_seconds: float = 60.0
    gather_ms: float = 5.0
