"""Access control: which requests a server accepts, by API key, Host and Origin."""

from __future__ import annotations

import hmac
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Protocol, overload
from urllib.parse import urlsplit

from ..errors import OptionError
from .errors import HttpError

PUBLIC_PATHS: Final = frozenset({"/", "/watch", "/healthz", "/readyz"})
PUBLIC_PREFIX: Final = "/page/"
"""Paths without API key: health checks, and static files of the page, which reveal nothing about the model."""

LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class RequestHeaders(Protocol):
    """Headers of a request, by name in any case."""

    @overload
    def get(self, name: str, /) -> str | None: ...

    @overload
    def get(self, name: str, default: str, /) -> str: ...


@dataclass(frozen=True)
class AccessPolicy:
    """Which requests are accepted.

    Attributes:
        key: API key that clients must send as ``Authorization: Bearer KEY``; "" for none.
        local: whether the server is meant for this machine only. Without a key it then requires a loopback name in the
            Host header: otherwise a foreign page whose host name resolves to 127.0.0.1 could read responses (DNS
            rebinding).
    """

    key: str = field(default="", repr=False)
    local: bool = True

    def check(self, method: str, path: str, headers: RequestHeaders) -> None:
        """Accepts a request or raises.

        Raises:
            HttpError: the API key is missing or wrong (401), or the request comes from a page of another site (403).
        """
        host = headers.get("host", "")
        if self.local and not self.key and _host_name(host) not in LOOPBACK_HOSTS:
            raise HttpError(
                403,
                "This server answers only to requests for localhost. Use that address, or start it with an API key.",
            )
        origin = headers.get("origin")
        if method not in SAFE_METHODS and origin is not None and not _is_same_origin(origin, host):
            raise HttpError(403, "Requests from pages of another site are refused.")
        if self.key and path not in PUBLIC_PATHS and not path.startswith(PUBLIC_PREFIX) and not self._has_key(headers):
            raise HttpError(401, "Send the API key of this server in the header Authorization: Bearer KEY.")

    def _has_key(self, headers: RequestHeaders) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        is_equal = hmac.compare_digest(given.strip().encode(), self.key.encode())
        return is_equal and scheme.lower() == "bearer"


def check_key(key: str) -> None:
    """Checks that a header can contain an API key.

    Raises:
        OptionError: it has other characters.
    """
    if not all("!" <= c <= "~" for c in key):
        raise OptionError("The API key may contain ASCII letters, digits and punctuation only, and no spaces.")


def _is_same_origin(origin: str, host: str) -> bool:
    """Whether an Origin header names the site of a Host header; False for an invalid one."""
    with suppress(ValueError):
        return urlsplit(origin).netloc.lower() == host.lower()
    return False


def _host_name(host: str) -> str:
    """Host name of a Host header, without the port; "" for an invalid one."""
    with suppress(ValueError):
        return urlsplit(f"//{host}").hostname or ""
    return ""
