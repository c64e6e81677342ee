"""Why a request gets no answer: one shape for all of them."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

CODES = {413: "too_large", 422: "not_as_described", 503: "unavailable", 504: "too_slow"}
"""Where Python's own names have changed, or say little."""


class ProblemDetail(BaseModel):
    """What was wrong."""

    status: int = Field(description="The status of the response.", examples=[413])
    code: str = Field(description="The status in words, for programs.", examples=["too_large"])
    reason: str = Field(description="What was found, what was expected, what to do.")


class Problem(BaseModel):
    """The body of every response that is no answer."""

    error: ProblemDetail


class Refusal(Exception):
    """A request that gets no answer.

    Args:
        status: of the response.
        reason: what was found, what was expected, what to do.
        retry_after: seconds after which it may be sent again; None where it would be refused again.
    """

    def __init__(self, status: int, reason: str, *, retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Of the response."""
        own = {"Retry-After": str(self.retry_after)} if self.retry_after is not None else {}
        return own | {"WWW-Authenticate": "Bearer"} if self.status == HTTPStatus.UNAUTHORIZED else own

    def response(self) -> JSONResponse:
        """As it is sent."""
        return JSONResponse(problem_document(self.status, self.reason), self.status, self.headers)


def problem_document(status: int, reason: str) -> dict[str, Any]:
    """A JSON document as ``Problem`` has it."""
    code = CODES.get(status) or HTTPStatus(status).name.lower()
    return {"error": {"status": status, "code": code, "reason": reason}}
