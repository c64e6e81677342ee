"""Log of requests: one line of JSON for each, on stderr."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from .access import SAFE_METHODS

LOGGED_METHODS: Final = SAFE_METHODS | {"POST", "PUT", "PATCH", "DELETE"}
MAX_LOGGED_PATH: Final = 200
"""Maximum length of a path in the log, in characters."""


def request_entry(method: str, path: str, status: int, seconds: float) -> dict[str, Any]:
    """The log entry of a request: no query, no file name and no key.

    Args:
        method: as it was sent.
        path: as it was sent, without the query.
        status: HTTP status of the response.
        seconds: from the headers of the request to the end of the response.
    """
    shown = method if method in LOGGED_METHODS else "other"
    entry = {"time": timestamp(), "method": shown, "path": path[:MAX_LOGGED_PATH], "status": status}
    return entry | {"ms": round(1000 * seconds, 1)}


def write_json_line(entry: dict[str, Any]) -> None:
    """Writes a log entry to stderr as one line of ASCII JSON, so that no client can inject line breaks or escapes."""
    with suppress(OSError):  # stderr is closed: answering requests matters more than the log
        print(json.dumps(entry), file=sys.stderr, flush=True)


def timestamp() -> str:
    """The time in UTC, with milliseconds (ISO 8601)."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
