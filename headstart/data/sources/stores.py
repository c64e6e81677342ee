"""The store of an address: this machine, or the storage that its URL names."""

from __future__ import annotations

from functools import cache

from headstart.data.sources.addresses import is_url, scheme_of
from headstart.data.sources.interface import FileStore
from headstart.data.sources.local import LocalStore
from headstart.data.sources.remote import SCHEMES, RemoteStore
from headstart.errors import SourceError

_LOCAL = LocalStore()


def store_of(address: str) -> FileStore:
    """The store that a path or URL is in.

    Raises:
        SourceError: the scheme is unknown.
    """
    if not is_url(address):
        return _LOCAL
    scheme = scheme_of(address)
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise SourceError(f"{address}: {scheme}:// is not supported. Supported: {known}, and paths.")
    return _remote_store(scheme)


@cache
def _remote_store(scheme: str) -> RemoteStore:
    return RemoteStore(SCHEMES[scheme])
