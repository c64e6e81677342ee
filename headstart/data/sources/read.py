"""Reading the bytes of an image by its address: the one function that every other module uses."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from headstart.concurrency import usable_cpus
from headstart.data.sources.addresses import is_url, split_address
from headstart.data.sources.containers import open_container
from headstart.data.sources.stores import store_of
from headstart.errors import DataError, UnreadableImage

REMOTE_THREADS: Final = 16
"""Threads that read images from remote storage: most of the time they wait for an answer."""


def read_image(address: str) -> bytes:
    """The bytes of an image file.

    Args:
        address: a path, a URL, or ``CONTAINER::MEMBER``.

    Raises:
        UnreadableImage: this image is missing or damaged.
        SourceError: its storage cannot be reached.
        MissingExtra: a library for its storage or its table is not installed.
    """
    container, member = split_address(address)
    if not member:
        return store_of(address).read(address)
    try:
        return open_container(container).read(member)
    except UnreadableImage as error:
        raise UnreadableImage(address, error.reason) from error
    except DataError as error:  # the whole container is damaged
        raise UnreadableImage(address, str(error).removeprefix(f"{container}: ").rstrip(".")) from error


def is_gone(address: str) -> bool:
    """Whether a file of this machine, or the archive or table that an image is in, no longer exists; no for a URL."""
    return not is_url(address) and not os.path.isfile(split_address(address)[0])


def reading_order(addresses: Sequence[str]) -> list[int]:
    """An order in which containers are read from start to end: positions of ``addresses``, files of their own first.

    Tables are read by groups of rows: out of order, each group would be read many times.
    """
    containers = [split_address(address) for address in addresses]
    if not any(member for _, member in containers):
        return list(range(len(addresses)))

    def place(position: int) -> tuple[str, int, int]:
        container, member = containers[position]
        if not member:
            return "", 0, position
        try:
            return container, open_container(container).position(member), position
        except DataError:  # named when it is read
            return container, 0, position

    return sorted(range(len(addresses)), key=place)


def num_reading_threads(addresses: Sequence[str], processors: int | None = None) -> int:
    """Number of threads that read and decode images: one for each processor, more if an address is remote.

    Args:
        addresses: of the images.
        processors: that this process has for itself; None for those that it may use.
    """
    count = processors or usable_cpus()
    return max(count, REMOTE_THREADS) if any(map(is_url, addresses)) else count
