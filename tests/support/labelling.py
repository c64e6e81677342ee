"""A labelling session on small random images, behind a real server or a client in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from random_images import COLOURS, random_image
from servers import serving

from headstart.labelling.session import LabellingSession
from headstart.serve.labelling.backend import LabellingBackend
from headstart.serve.labelling.process import labelling_app
from headstart.serve.middleware import ServerState


def write_unlabelled(folder: Path, count: int, *, first_seed: int = 0) -> Path:
    """Writes ``folder/<n>-<colour>.png``: images of three colours without class folders."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        name = list(COLOURS)[i % 3]
        random_image(first_seed + i, COLOURS[name]).save(folder / f"{i:04d}-{name}.png")
    return folder


def colour_of(item: dict[str, Any]) -> str:
    """True class of an image of ``write_unlabelled``."""
    return str(item["name"]).partition("-")[2].removesuffix(".png")


@contextmanager
def opened_session(folder: Path, **options: Any) -> Iterator[LabellingBackend]:
    """A session whose pass has begun; closed at the end."""
    train_options = options.pop("train_options", ())
    session = LabellingSession.open(folder, device="cpu", **options)
    backend = LabellingBackend(session, train_options, "cpu")
    session.start()
    try:
        yield backend
    finally:
        backend.close()


@contextmanager
def labelling_site(backend: LabellingBackend) -> Iterator[str]:
    """A real server of the page; yields the URL."""
    state = ServerState()
    with serving(labelling_app(backend, state), state) as site:
        yield site
        state.draining = True


def wait_for(true: Callable[[], object], seconds: float = 60.0) -> None:
    """Polls a condition until it is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.02)
