"""Pretrained weights that timm names: in its local cache, or to be downloaded from the Hugging Face hub."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import huggingface_hub
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError

from headstart.files import replacing
from headstart.hub import hub_endpoint
from headstart.progress import Progress

HUB_TIMEOUT_SECONDS = 10

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Files of weights in timm's repositories; the first one that exists is used."""


MEGABYTE = 1_000_000

_HUB_BAR: Any = huggingface_hub.utils.tqdm  # type: ignore[attr-defined]  # exported lazily
_HASH = re.compile(r"-([0-9a-f]{8,64})\.")
"""In the name of a file that is not on the hub: the start of its SHA-256, by PyTorch's convention."""


def cached_file(config: Any) -> Path | None:
    """The file of an earlier download; no network is used.

    Args:
        config: ``timm.get_pretrained_cfg(name)``.
    """
    if not config.hf_hub_id:
        file = _file_of_url(config.url or "")
        return file if file.is_file() else None
    repository, revision = _repository(config)
    for name in WEIGHT_FILES:
        path = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(path, str):
            return Path(path)
    return None


def cached_names() -> Iterator[str]:
    """``architecture.tag`` of every network of timm whose weights are in the local cache; no network is used."""
    for name in timm.list_pretrained():
        if cached_file(timm.get_pretrained_cfg(name)) is not None:
            yield name


def download_bytes(config: Any) -> int:
    """Size of the file of weights on the hub, in bytes; nothing is downloaded.

    Args:
        config: ``timm.get_pretrained_cfg(name)``.

    Raises:
        Exception: of huggingface_hub or its HTTP client: no such repository, or the hub cannot be reached.
    """
    return _find(config)[1]


def download(config: Any, name: str, progress: Progress) -> Path:
    """Downloads a file of weights to the local cache.

    Args:
        config: ``timm.get_pretrained_cfg(name)``.
        name: of the weights, for the progress bar.
        progress: receives the megabytes.

    Returns:
        The file in the cache.

    Raises:
        Exception: of huggingface_hub or its HTTP client: no such repository, or the hub cannot be reached.
    """
    _reach(config)
    file, size = _find(config)
    with progress.task(f"Downloading {name}", -(-size // MEGABYTE), "MB") as advance:
        count = _megabytes(advance, size)
        if not config.hf_hub_id:
            return _download_url(file, count)
        repository, revision = _repository(config)
        path = huggingface_hub.hf_hub_download(
            repository, file, revision=revision, endpoint=hub_endpoint(), tqdm_class=_counter(count)
        )
    return Path(path)


def _find(config: Any) -> tuple[str, int]:
    """(Name of the file in the repository or its URL, size in bytes)."""
    _require_network()
    if not config.hf_hub_id:
        answer = huggingface_hub.get_session().head(config.url, timeout=HUB_TIMEOUT_SECONDS, follow_redirects=True)
        answer.raise_for_status()
        return config.url, int(answer.headers.get("Content-Length", 0))
    repository, revision = _repository(config)
    for name in WEIGHT_FILES:
        url = huggingface_hub.hf_hub_url(repository, name, revision=revision, endpoint=hub_endpoint())
        try:
            return name, huggingface_hub.get_hf_file_metadata(url, timeout=HUB_TIMEOUT_SECONDS).size or 0
        except EntryNotFoundError:
            continue
    raise FileNotFoundError(f"{repository} contains neither {' nor '.join(WEIGHT_FILES)}")


def _reach(config: Any) -> None:
    """Raises an error within seconds if there is no network; the hub's client would retry for most of a minute."""
    _require_network()
    address = hub_endpoint() or huggingface_hub.constants.ENDPOINT
    huggingface_hub.get_session().head(address if config.hf_hub_id else config.url, timeout=HUB_TIMEOUT_SECONDS)


def _require_network() -> None:
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set")


def _megabytes(advance: Callable[[int], None], size: int) -> Callable[[int], None]:
    """A function that takes numbers of bytes and passes on whole megabytes, ``size`` bytes in total at most."""
    done = 0

    def count(more: int) -> None:
        nonlocal done
        before, done = -(-done // MEGABYTE), min(size, done + more)
        advance(-(-done // MEGABYTE) - before)

    return count


def _counter(count: Callable[[int], None]) -> type:
    """A class in place of tqdm's progress bar, for ``hf_hub_download``; it shows nothing and counts bytes."""

    class ByteCounter(_HUB_BAR):  # type: ignore[misc]
        monitor_interval = 0  # no thread

        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings | {"disable": True})
            count(int(settings.get("initial") or 0))  # a download that is continued

        def update(self, n: float | None = 1) -> None:
            count(int(n or 0))

        def update_transfer(self, n: float | None = 1) -> None:
            """Ignores bytes on the wire: those of the file are counted by ``update``."""

        def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None:
            """Shows nothing."""

    return ByteCounter


def _download_url(url: str, count: Callable[[int], None]) -> Path:
    """Downloads weights that are not on the hub to the folder where timm looks for them."""
    path, digest = _file_of_url(url), hashlib.sha256()
    with (
        huggingface_hub.get_session().stream("GET", url, follow_redirects=True) as answer,
        replacing(path) as partial,
        open(partial, "wb") as file,
    ):
        answer.raise_for_status()
        for chunk in answer.iter_bytes():
            file.write(chunk)
            digest.update(chunk)
            count(len(chunk))
        found = _HASH.search(path.name)
        if found is not None and not digest.hexdigest().startswith(found[1]):
            raise ConnectionError(f"{url}: damaged in the download; its SHA-256 does not begin with {found[1]}")
    return path


def _file_of_url(url: str) -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)


def _repository(config: Any) -> tuple[str, str | None]:
    """(OWNER/NAME, revision or None for the main branch)."""
    repository, _, revision = config.hf_hub_id.partition("@")
    return repository, revision or None
