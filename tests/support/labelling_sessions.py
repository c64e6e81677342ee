"""Labelling sessions whose features follow from the names of the images, so that no network runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.cache.keys import content_key
from headstart.data.duplicates import DuplicatePair
from headstart.labelling import LabellingSession
from headstart.labelling.frozen_pass import FrozenPass, PassResult
from headstart.labelling.stacks import Stacks

COLOURS = ("blue", "green", "red")

HIDDEN = {"gold": "blue", "white": "red"}
"""Class -> the one of ``COLOURS`` that a classifier without its name takes its images for, with certainty."""


def write_names(folder: Path, counts: dict[str, int]) -> Path:
    """Writes ``folder/<class>-<n>.jpg``: files of a few bytes, which stand for images."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in counts.items():
        for number in range(count):
            (folder / f"{name}-{number}.jpg").write_bytes(f"{name} {number}".encode())
    return folder


def truth(address: str) -> str:
    """The class in the name of a file; the name of its folder for a correction of a served model."""
    name, sign, _ = Path(address).name.partition("-")
    return name if sign else Path(address).parent.name


def result_of(addresses: list[str], pairs: tuple[DuplicatePair, ...] = (), *, noise: float = 0.1) -> PassResult:
    """What the pass would find: features of classes apart, and the given near-duplicates."""
    keys = [content_key(Path(address).read_bytes()) for address in addresses]
    rows = []
    for address, key in zip(addresses, keys, strict=True):
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(key).digest()[:8], "big"))
        row = noise * rng.normal(size=24)
        name = truth(address)
        row[COLOURS.index(HIDDEN.get(name, name))] += 6 if name in HIDDEN else 2
        if name in HIDDEN:
            row[len(COLOURS) + list(HIDDEN).index(name)] += 3
        rows.append(row)
    count = len(addresses)
    sizes = np.full((count, 2), (48, 40))
    stacks = Stacks.of_pairs(count, [pair for pair in pairs if pair.second < count])  # others are added later
    return PassResult(keys, {}, stacks, np.array(rows, np.float32), np.ones(count, bool), sizes)


@contextmanager
def named_session(folder: Path, *, pairs: tuple[DuplicatePair, ...] = (), **options: Any) -> Iterator[LabellingSession]:
    """A session of ``write_names`` that is ready; its features follow from the names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrozenPass, "_computed", lambda self: result_of(list(self.images.addresses), pairs))
        patch.setattr(FrozenPass, "joined", lambda self, *_: result_of(list(self.images.addresses), pairs))
        session = LabellingSession.open(folder, **options)
        try:
            session.start()
            assert session.wait_ready(240), session.state()["work"]
            yield session
        finally:
            session.close()


def label(session: LabellingSession, images: list[int], source: str = "grid") -> None:
    """Labels images by the classes in their names."""
    for name in dict.fromkeys(truth(session.address(image)) for image in images):
        chosen = [image for image in images if truth(session.address(image)) == name]
        session.act({"do": "label", "images": chosen, "label": name, "source": source})
    assert session.wait_learnt(60)


def open_images(session: LabellingSession) -> list[int]:
    """Images outside the blind sample."""
    assert session.learning is not None
    return [int(image) for image in np.flatnonzero(session.learning.is_open())]
