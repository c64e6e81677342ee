"""Addresses of images and of data: paths, URLs, and ``CONTAINER::MEMBER``. Texts only; no file is opened here."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from headstart.errors import OptionError
from headstart.files import UserPath, user_path

MEMBER: Final = "::"
"""Separator of a container and the image in it: ``shard-000.tar::a/b.jpg``, ``flowers.parquet::17``."""

ARCHIVE_SUFFIXES: Final = (".tar", ".zip")

CONTAINER_SUFFIXES: Final = (*ARCHIVE_SUFFIXES, ".parquet", ".arrow")
"""Suffixes of files that hold images; each has an opener in ``containers.CONTAINERS``."""

COMPRESSED_SUFFIXES: Final = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
"""Suffixes of compressed tar files, in which an image cannot be found without decompressing everything before it."""

_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_COLLAPSED: Final = re.compile(r"(s3|gs|gcs|hf|https?):/(?!/)")
"""Start of a URL in which ``pathlib.Path`` has collapsed the double slash."""

_CONTAINER: Final = re.compile(rf"(?:{'|'.join(map(re.escape, CONTAINER_SUFFIXES))}){MEMBER}", re.IGNORECASE)
_GLOB: Final = re.compile(r"[*?\[]")


def is_url(address: str) -> bool:
    """Whether an address starts with a scheme such as ``s3://``."""
    return _URL.match(address) is not None


def scheme_of(address: str) -> str:
    """The scheme of a URL in lower case, such as "s3"; "" for a path."""
    found = _URL.match(address)
    return found[1].lower() if found else ""


def user_address(source: UserPath) -> str:
    """Parses a path, a URL or an address given by a user; of paths ``~`` is expanded (see ``files.user_path``).

    Raises:
        OptionError: a URL without a bucket or host; see ``files.user_path``.
    """
    text = os.fspath(source) if isinstance(source, (str, os.PathLike)) else source
    if not isinstance(text, str) or not text:
        return os.fspath(user_path(source))
    text = _COLLAPSED.sub(lambda found: f"{found[0]}/", text, count=1) if _COLLAPSED.match(text) else text
    if scheme_of(text) == "file":
        try:
            text = unquote(urlsplit(text).path)
        except ValueError as error:  # such as file://[
            raise OptionError(f"{text}: not a valid URL ({error}).") from error
    if is_url(text):
        if not text.partition("://")[2].strip("/"):
            raise OptionError(f"{text}: names no bucket or host.")
        return text if MEMBER in text else text.rstrip("/")
    container, member = split_address(text)
    return join_member(os.fspath(user_path(container)), member)


def split_address(address: str) -> tuple[str, str]:
    """(container, member) of an address; the member is "" for an image that is a single file.

    The container is a path or a URL that ends in one of ``CONTAINER_SUFFIXES``.
    """
    found = _CONTAINER.search(address)
    return (address[: found.end() - len(MEMBER)], address[found.end() :]) if found else (address, "")


def join_member(container: str, member: str) -> str:
    """The address of a member; the container itself for the member ""."""
    return f"{container}{MEMBER}{member}" if member else container


def join(base: str, path: str) -> str:
    """The address of a path that is relative to a folder; URLs and absolute paths are unchanged.

    Args:
        base: address of a folder.
        path: as in ``Dataset.paths``.
    """
    if not is_url(base):
        return path if is_url(path) else os.path.join(base, path)
    return path if is_url(path) or os.path.isabs(path) else f"{base}/{path}"


def relative_to(address: str, base: str) -> str:
    """``address`` relative to the folder ``base`` if it is below it, else ``address``; for paths by the file system."""
    if is_url(address) or is_url(base):
        return address.removeprefix(f"{base}/")
    container, member = split_address(address)
    path = os.path.relpath(container, base)
    return address if path.startswith(os.pardir) else join_member(path, member)


def absolute(address: str) -> str:
    """A path made absolute; a URL is unchanged."""
    if is_url(address):
        return address
    container, member = split_address(address)
    return join_member(os.path.abspath(container), member)


def resolved(address: str) -> str:
    """A path made absolute, with links resolved; a URL is unchanged."""
    if is_url(address):
        return address
    container, member = split_address(address)
    return join_member(str(Path(container).resolve()), member)


def parent_of(address: str) -> str:
    """The folder of a file: its path or URL."""
    return address.rpartition("/")[0] if is_url(address) else os.path.dirname(address) or os.curdir


def name_of(address: str) -> str:
    """The last part of a path or URL, without a query."""
    path = address.partition("?")[0] if is_url(address) else address
    return (posixpath if is_url(address) else os.path).basename(path.rstrip("/")) or address


def suffix_of(address: str) -> str:
    """The suffix of a file's name in lower case: ".tar". Queries of URLs are ignored."""
    return os.path.splitext(name_of(address))[1].lower()


def is_container(address: str) -> bool:
    """Whether the suffix of a path or URL is one of a file that holds images."""
    return suffix_of(address) in CONTAINER_SUFFIXES


def is_glob(address: str) -> bool:
    """Whether an address is a pattern for several files; the query of a URL counts as no pattern."""
    if is_url(address):
        return "*" in address or "[" in address
    return _GLOB.search(address) is not None and not os.path.lexists(address)


def title_of(address: str) -> str:
    """A name for data: that of the folder or file, or for a pattern that of its folder; links are resolved."""
    if is_glob(address):
        return name_of(absolute(parent_of(address)))
    return name_of(resolved(address))
