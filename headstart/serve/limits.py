"""Limits of the server, each declared once: the command line and the table in docs/how-to/serve.md derive from it."""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from typing import Any, Final

LINGER_SECONDS: Final = 2.0
"""Lingering close: after an early error response, the rest of the request is read and discarded until nothing has
arrived for this long. A connection that is closed with unread bytes is reset, and a client that sends its whole request
before it reads would never see the response."""

MAX_DISCARDED_BODIES: Final = 4
"""Maximum number of discarded bytes, as a multiple of ``ServerLimits.max_body_bytes``; they are not stored."""

SMALL_IMAGE_PIXELS: Final = 4_000_000
"""Images up to this size are decoded by any free thread. Larger ones share a budget of ``ServerLimits.max_pixels``
pixels, which bounds their total memory. A JPEG counts with the size to which its decoder reduces it."""


@dataclass(frozen=True)
class LimitOption:
    """Description of one limit, stored in the metadata of its field.

    Attributes:
        help: help text of the command-line option.
        exceeded: what happens to a request beyond the limit, for the documentation.
        flag: command-line option without dashes; "" if the limit cannot be set there.
        unit: unit on the command line and in the documentation.
        scale: value of the field for one ``unit``.
        minimum: smallest value on the command line, in ``unit``.
    """

    help: str
    exceeded: str
    flag: str = ""
    unit: str = ""
    scale: float = 1.0
    minimum: float = 1.0


def _limit(default: float, help: str, exceeded: str, **more: Any) -> Any:
    return field(default=default, metadata={"limit": LimitOption(help, exceeded, **more)})


RETRY: Final = "503 with Retry-After"


@dataclass(frozen=True)
class ServerLimits:
    """Limits of the server, one for each resource that a client controls.

    Attributes:
        max_body_bytes: size of one request body.
        max_buffered_bytes: total size of the bodies of all active requests.
        max_images: images in one request.
        max_pixels: pixels of one image, read from its header before decoding.
        max_queued_images: images of all requests that wait for the model or are processed.
        max_queued_tasks: requests of each other kind (see ``batching.TaskKind``) that wait or are processed.
        max_connections: open connections.
        header_timeout: seconds until a connection has sent the headers of a request.
        body_timeout: seconds until the request body has arrived.
        response_timeout: seconds from the complete body to the response.
        keep_alive_timeout: seconds for which an idle connection is kept open between requests.
        drain_timeout: seconds for active requests to finish after the server was asked to stop.
        batch_wait_ms: milliseconds for which a decoded image waits for images that are being decoded, to share a batch.

    Examples:
        >>> from headstart.serve import ServerLimits, create_app
        >>> app = create_app("runs/flowers", limits=ServerLimits(max_images=8))
    """

    max_body_bytes: int = _limit(
        64_000_000,
        "Maximum size of a request body, in MB.",
        "413",
        flag="max-body",
        unit="MB",
        scale=1e6,
        minimum=0.001,
    )
    max_buffered_bytes: int = _limit(
        256_000_000, "Maximum size of all request bodies in memory, in MB.", RETRY, unit="MB", scale=1e6
    )
    max_images: int = _limit(64, "Maximum number of images in a request.", "413", flag="max-images")
    max_pixels: int = _limit(
        50_000_000,
        "Maximum size of an image, in megapixels.",
        "`error` of that image",
        flag="max-pixels",
        unit="megapixels",
        scale=1e6,
        minimum=0.001,
    )
    max_queued_images: int = _limit(
        512, "Maximum number of images in the queue, over all requests.", RETRY, flag="queue"
    )
    max_queued_tasks: int = _limit(
        16, "Maximum number of queued heat maps, similar-image searches and corrections, of each kind.", RETRY
    )
    max_connections: int = _limit(256, "Maximum number of open connections.", RETRY, flag="connections")
    header_timeout: float = _limit(10.0, "Seconds until the request headers have arrived.", "closed", unit="s")
    body_timeout: float = _limit(30.0, "Seconds until the request body has arrived.", "408", unit="s")
    response_timeout: float = _limit(
        30.0, "Seconds from the request body to the response.", "504", flag="timeout", unit="s", minimum=0.1
    )
    keep_alive_timeout: float = _limit(
        15.0, "Seconds for which an idle connection stays open between requests.", "closed", unit="s"
    )
    drain_timeout: float = _limit(
        60.0, "Seconds for active requests to finish when the server stops.", "closed", unit="s"
    )
    batch_wait_ms: float = _limit(
        5.0,
        "Milliseconds for which a batch waits for further images that are being decoded.",
        "runs without them",
        flag="gather",
        unit="ms",
        minimum=0.0,
    )


def _option(limit_field: Field[Any]) -> LimitOption:
    option: LimitOption = limit_field.metadata["limit"]
    return option


def _default(limit_field: Field[Any]) -> float:
    default: Any = limit_field.default
    return float(default) if isinstance(default, float) else int(default)


def limit_option(flag: str) -> tuple[LimitOption, float]:
    """A command-line option and its default, in the option's unit.

    Raises:
        KeyError: there is no such option.
    """
    for limit_field in fields(ServerLimits):
        if _option(limit_field).flag == flag:
            return _option(limit_field), _default(limit_field) / _option(limit_field).scale
    raise KeyError(flag)


def limits_from_options(values: dict[str, float]) -> ServerLimits:
    """Limits from command-line values.

    The total of all bodies is at least twice one body, and the queue holds at least one full request: without that, a
    request of the allowed size could never be accepted.

    Args:
        values: flag without dashes to value, in the option's unit.
    """
    given: dict[str, Any] = {}
    for limit_field in fields(ServerLimits):
        option = _option(limit_field)
        if option.flag in values:
            given[limit_field.name] = type(_default(limit_field))(option.scale * values[option.flag])
    limits = ServerLimits(**given)
    given["max_buffered_bytes"] = max(limits.max_buffered_bytes, 2 * limits.max_body_bytes)
    given["max_queued_images"] = max(limits.max_queued_images, limits.max_images)
    return ServerLimits(**given)


def limits_table() -> str:
    """Markdown table of all limits; docs/how-to/serve.md contains it."""
    lines = ["| limit | default | option | when it is exceeded |", "|---|---|---|---|"]
    for limit_field in fields(ServerLimits):
        option = _option(limit_field)
        flag = f"`--{option.flag}`" if option.flag else ""
        default = f"{_default(limit_field) / option.scale:,g} {option.unit}".strip()
        what = option.help.rstrip(".").removesuffix(f", in {option.unit}")
        lines.append(f"| {what} | {default} | {flag} | {option.exceeded} |")
    return "\n".join(lines)
