"""Object storage and web servers by URL, through fsspec; failed requests are retried for a few seconds."""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, Final, TypeVar, cast, final
from weakref import WeakSet

from natsort import natsorted

from headstart.concurrency import ProcessLock
from headstart.data.sources.addresses import scheme_of
from headstart.data.sources.interface import FileStamp
from headstart.errors import HeadstartError, SourceError, UnreadableImage, first_line
from headstart.extras import require_extra
from headstart.import_effects import import_quietly

ATTEMPTS: Final = 4
"""Attempts of a request before its store counts as unreachable."""

BACKOFF_SECONDS: Final = 0.25
"""Pause after the first failed attempt; doubled after each further one, so that all pauses take under 2 seconds."""

RETRY_SECONDS: Final = 12.0
"""Time after which a failed request is not tried again, whatever the number of attempts: each may end in a timeout."""

CONNECT_SECONDS: Final = 4.0
"""Timeout for a connection."""

READ_SECONDS: Final = 30.0
"""Timeout for the next bytes of an answer."""

BLOCK: Final = 1 << 20
"""Bytes that are read at once where an archive or a table is read in small steps."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Scheme:
    """A kind of remote storage.

    Attributes:
        protocol: fsspec's name of it.
        extra: that installs it; "" for none.
        has_folders: whether its files can be listed.
        remedy: what to check if it cannot be reached.
        settings: arguments of fsspec's file system, among them timeouts; a function, since some need the extra.
        file_system: class of the file system; None for the one that fsspec has for the protocol.
    """

    protocol: str
    extra: str
    has_folders: bool
    remedy: str
    settings: Callable[[], dict[str, Any]] = dict
    file_system: Callable[[], Any] | None = None

    def open(self) -> Any:
        """A new file system."""
        kind = (self.file_system or partial(import_quietly("fsspec").get_filesystem_class, self.protocol))()
        system = kind(skip_instance_cache=True, use_listings_cache=False, **self.settings())
        system.retries = 1  # of s3fs; requests are repeated here
        return system


def _s3_settings() -> dict[str, Any]:
    timeouts = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS, "retries": {"max_attempts": 0}}
    return {"config_kwargs": timeouts}


def _gs_file_system() -> Any:
    """Gcsfs's plain class without its repetition of requests, which takes half a minute and logs a traceback.

    Its default class asks for the kind of each bucket over gRPC, for up to a minute.
    """
    plain = import_quietly("gcsfs.core").GCSFileSystem
    request = getattr(plain._request, "__wrapped__", plain._request)
    return type(plain.__name__, (plain,), {"_request": request})


def _http_settings() -> dict[str, Any]:
    timeout = import_quietly("aiohttp").ClientTimeout(total=None, connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    return {"client_kwargs": {"timeout": timeout}}


_S3 = Scheme(
    "s3",
    "s3",
    True,
    "Check the network, AWS_ENDPOINT_URL, and the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or "
    "AWS_PROFILE); for a public bucket set FSSPEC_S3_ANON=true",
    _s3_settings,
)
_GS = Scheme(
    "gs",
    "gs",
    True,
    "Check the network and the credentials (gcloud auth application-default login); for a public bucket set "
    "FSSPEC_GS_TOKEN=anon",
    lambda: {"timeout": READ_SECONDS},
    _gs_file_system,
)
_HF = Scheme(
    "hf",
    "",
    True,
    "Check the network and the address; for a private repository run hf auth login",
    lambda: {"endpoint": os.environ.get("HF_ENDPOINT")},
)
_HTTP = Scheme("http", "http", False, "Check the network and the address", _http_settings)

SCHEMES: Final[dict[str, Scheme]] = {
    "s3": _S3,
    "s3a": _S3,
    "gs": _GS,
    "gcs": _GS,
    "hf": _HF,
    "http": _HTTP,
    "https": _HTTP,
}
"""Registry: scheme of a URL -> the kind of storage."""


@final
class RemoteStore:
    """Files of one kind of remote storage. Threads may share it.

    Args:
        scheme: an entry of ``SCHEMES``.
    """

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme
        self._systems: dict[int, Any] = {}
        self._lock = ProcessLock()
        _STORES.add(self)

    def read(self, address: str) -> bytes:
        """The content of a file."""
        return self._retried(address, lambda system: bytes(system.cat_file(address)))

    def read_range(self, address: str, offset: int, length: int) -> bytes:
        """At most ``length`` bytes from ``offset``."""
        data = self._retried(address, lambda system: system.cat_file(address, start=offset, end=offset + length))
        if len(data) > length:  # the server ignores ranges
            data = data[offset : offset + length]
        return bytes(data)

    def stamp(self, address: str) -> FileStamp:
        """The size alone: no request is made before each image of an archive."""
        size = self._retried(address, lambda system: system.info(address))["size"]
        if size is None:
            raise SourceError(f"{address}: the server does not say how large the file is. Download the file first.")
        return (size,)

    def open(self, address: str) -> BinaryIO:
        """A file that is read in blocks."""
        return cast(BinaryIO, _RemoteFile(self, address, self.stamp(address)[0]))

    def is_file(self, address: str) -> bool:
        """Whether it is an existing file."""
        try:
            # not isfile(), for which any failure means no
            return bool(self._retried(address, lambda system: system.info(address))["type"] == "file")
        except UnreadableImage:
            return False

    def files_below(self, folder: str) -> list[str]:
        """Every file below a folder; none if it does not exist."""
        if not self.scheme.has_folders:
            raise SourceError(
                f"{folder}: a web server has no list of files. Give a table with the URLs of the images, or an archive."
            )
        try:
            paths = self._retried(folder, lambda system: system.find(folder))
        except UnreadableImage:
            return []
        root = import_quietly("fsspec.core").strip_protocol(folder)
        return [path.removeprefix(f"{root}/") for path in paths if path.startswith(f"{root}/")]

    def matches(self, pattern: str) -> list[str]:
        """URLs of the files that match a pattern."""
        if not self.scheme.has_folders:
            raise SourceError(f"{pattern}: a web server has no list of files. Name each file.")
        start = f"{scheme_of(pattern)}://"
        return natsorted(f"{start}{path}" for path in self._retried(pattern, lambda system: system.glob(pattern)))

    def close(self) -> None:
        """Forgets the connections; the next request opens others."""
        with self._lock:
            self._systems.clear()

    def _system(self) -> Any:
        """The file system of this process: a forked child opens other connections."""
        with self._lock:
            process = os.getpid()
            if process not in self._systems:
                if self.scheme.extra:
                    require_extra(self.scheme.extra, f"reading {self.scheme.protocol}:// addresses")
                self._systems[process] = self.scheme.open()
            return self._systems[process]

    def _retried(self, address: str, work: Callable[[Any], Result]) -> Result:
        """Calls ``work`` with the file system, again after a failure that may pass.

        Raises:
            UnreadableImage: the file is missing, or the server refuses this file alone.
            SourceError: the storage cannot be reached.
        """
        system, started, attempt = self._system(), time.monotonic(), 1
        while True:
            try:
                return work(system)
            except HeadstartError:
                raise
            except Exception as raised:  # botocore, aiohttp, httpx and fsspec raise dozens of types
                error = self._original(raised)
                if fault := self._fault_of_file(error):
                    raise UnreadableImage(address, fault) from error
                if attempt == ATTEMPTS or time.monotonic() - started > RETRY_SECONDS:
                    tried = f"after {attempt} attempts" if attempt > 1 else "in one attempt"
                    raise SourceError(
                        f"{store_name(address)}: {_cause(error)} ({tried}). {self.scheme.remedy}, then run the "
                        "command again."
                    ) from error
            time.sleep(BACKOFF_SECONDS * 2 ** (attempt - 1))
            attempt += 1

    def _original(self, error: Exception) -> Exception:
        """What fsspec's ``info`` of a web server calls FileNotFoundError, whatever went wrong."""
        cause = error.__cause__
        is_wrapped = (
            not self.scheme.has_folders and isinstance(error, FileNotFoundError) and isinstance(cause, Exception)
        )
        return cast(Exception, cause) if is_wrapped else error

    def _fault_of_file(self, error: Exception) -> str:
        """Why one file cannot be read although its store answers; "" for a failure of the store."""
        if isinstance(error, FileNotFoundError):
            return "not found (404)"
        status = getattr(error, "status", None)
        if not self.scheme.has_folders and isinstance(status, int) and 400 <= status < 500 and status not in (408, 429):
            return f"refused by the server ({status})"
        return "not a valid URL" if not self.scheme.has_folders and isinstance(error, ValueError) else ""


def close_connections() -> None:
    """Forgets the connections of all stores, for example after the environment has changed."""
    for store in list(_STORES):
        store.close()


def store_name(address: str) -> str:
    """Bucket or host of a URL, as messages name it: ``s3://bucket``."""
    scheme, _, rest = address.partition("://")
    host = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]  # without a password
    return f"{scheme}://{host}"


def _cause(error: Exception) -> str:
    """The reason of a failure in a few words."""
    status = error.status if hasattr(error, "status") else getattr(error, "code", None)
    words = first_line(error)
    if isinstance(error, PermissionError) or status in (401, 403) or words.startswith("Forbidden:"):  # of gcsfs
        return "access denied"
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        return "no credentials found"
    timed_out = isinstance(error, TimeoutError) or "timeout" in type(error).__name__.lower()
    return "timeout" if timed_out else f"cannot be reached: {words or type(error).__name__}"


_STORES: WeakSet[RemoteStore] = WeakSet()


class _RemoteFile(io.RawIOBase):
    """A remote file that is read block by block; the last block is kept."""

    def __init__(self, store: RemoteStore, address: str, size: int) -> None:
        self._store, self._address, self._size = store, address, size
        self._position, self._start, self._block = 0, 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        length = max(0, self._size - self._position)
        length = length if size is None or size < 0 else min(size, length)
        data = self._from_block(self._position, length)
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _from_block(self, offset: int, length: int) -> bytes:
        if not length:
            return b""
        if offset < self._start or offset + length > self._start + len(self._block):
            wanted = min(max(length, BLOCK), self._size - offset)
            self._start, self._block = offset, self._store.read_range(self._address, offset, wanted)
        return self._block[offset - self._start : offset - self._start + length]
