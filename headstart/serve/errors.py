"""HTTP error responses: every response that is not a result has one JSON format."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final

from ..errors import OptionError, OutputError, UnreadableImage

CODES = {413: "too_large", 422: "not_as_described", 503: "unavailable", 504: "too_slow"}
"""Codes that differ from Python's status names, which changed between versions (413, 422) or are long."""


ERROR_DESCRIPTIONS: Final = {
    400: "The body is not a valid multipart form.",
    401: "The API key is missing or wrong.",
    403: "The request comes from a page of another site, or its Host header is not localhost.",
    408: "The request body did not arrive in time.",
    413: "The body is too large, or has too many images.",
    422: "The form or a parameter does not match this description.",
    503: "The queue is full, or the server is about to stop. Retry-After has the seconds to wait before retrying.",
    504: "No result in time.",
}
"""Error responses of this server."""


class HttpError(Exception):
    """A request that is answered with an error response.

    Args:
        status: HTTP status of the response.
        reason: what was found, what was expected and what to do.
        retry_after: seconds after which the request may be sent again; None if a retry would fail as well.
    """

    def __init__(self, status: int, reason: str, *, retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Headers that the status requires: Retry-After, WWW-Authenticate."""
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after is not None else {}
        return headers | {"WWW-Authenticate": "Bearer"} if self.status == HTTPStatus.UNAUTHORIZED else headers


def error_document(status: int, reason: str) -> dict[str, Any]:
    """JSON document in the format of ``schemas.ErrorResponse``."""
    code = CODES.get(status) or HTTPStatus(status).name.lower()
    return {"error": {"status": status, "code": code, "reason": reason}}


@contextlib.contextmanager
def errors_as_http() -> Iterator[None]:
    """Turns errors of the library into error responses."""
    try:
        yield
    except UnreadableImage as error:
        raise HttpError(HTTPStatus.UNPROCESSABLE_ENTITY, f"The image cannot be read: {error.reason}.") from error
    except OptionError as error:
        raise HttpError(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
    except OutputError as error:
        raise HttpError(HTTPStatus.INSUFFICIENT_STORAGE, str(error)) from error
