"""A tiny model behind a real server in a thread, on a free local port."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest
from encoded_images import encoded
from random_images import random_image

import headstart.serve.batching as services
from headstart.backbone.pixel_net import FeatureNet, feature_shape
from headstart.backbone.weights import random_backbone
from headstart.model import Model
from headstart.serve.access import AccessPolicy
from headstart.serve.app import build_app
from headstart.serve.batching import InferenceService
from headstart.serve.limits import ServerLimits
from headstart.serve.server import address, listen, server_for
from headstart.serve.uvicorn_server import quiet_uvicorn
from headstart.training.heads import linear_head
from headstart.training.recipe import Recipe

CLASSES = ("9", "10", "é")
LENGTH = feature_shape(FeatureNet(random_backbone("test_resnet", image_size=64)))[0]


def tiny_model(**more: Any) -> Model:
    """A model with random weights, 64 pixels and three classes."""
    net = FeatureNet(random_backbone("test_resnet", image_size=64))
    weight = np.random.default_rng(0).normal(size=(3, feature_shape(net)[0])).astype(np.float32)
    head = linear_head(weight, np.array([0.1, 0, -0.1]))
    return Model(net, head, CLASSES, recipe=Recipe(), data={"a": 1}, scores={}, **more)


def jpeg(seed: int = 0, kind: str = "JPEG", **size: tuple[int, int]) -> bytes:
    return encoded(random_image(seed, **size), kind)


def form(*images: tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", own) for own in images]


@dataclass
class Served:
    """A running server and its log."""

    service: InferenceService
    url: str
    port: int
    client: httpx.Client
    log: list[dict[str, Any]] = field(default_factory=list)

    @property
    def last(self) -> dict[str, Any]:
        """The last log entry, after all requests are answered."""
        until(lambda: not self.service.state.active_requests)
        return self.log[-1]

    def predict(self, *images: tuple[str, bytes], **options: Any) -> httpx.Response:
        return self.client.post("/v1/predict", files=form(*images), **options)


@contextmanager
def served(model: Model, *, limits: ServerLimits | None = None, key: str = "", local: bool = True) -> Iterator[Served]:
    """A ready server with the PyTorch engine."""
    log: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(services, "EXPECTED_IMAGES", 1)
        service = InferenceService(model, limits=limits)
        app = build_app(service, admission=AccessPolicy(key, local), log=log.append)
        listener = listen("127.0.0.1", 0)
        server = server_for(app, service)

        def run() -> None:
            with quiet_uvicorn():
                asyncio.run(server.serve(sockets=[listener]))

        thread = threading.Thread(target=run)
        thread.start()
        until(lambda: service.ready or service.startup_error is not None)
        url = address(listener)
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
            try:
                yield Served(service, url, listener.getsockname()[1], client, log)
            finally:
                client.close()
                server.should_exit = True
                thread.join()


def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    """Polls a condition until it is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.005)
