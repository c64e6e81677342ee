"""Exported pages: files of ONNX Runtime Web, a plain file server, and predictions in Chromium."""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from headstart.exports import onnxruntime_web
from headstart.exports.formats.interface import WriteRequest
from headstart.exports.formats.registry import FORMATS
from headstart.model import Model
from headstart.progress import SilentProgress

if TYPE_CHECKING:
    from playwright.sync_api import Page

NODE_PACKAGES = os.environ.get("HEADSTART_NODE_PACKAGES", "")
"""A folder with onnxruntime-web in node_modules."""

PREDICT = """async ([module, images, options]) => {
  const { load } = await import(module);
  globalThis.model ??= await load(undefined, options);
  const found = [];
  for (const image of images) {
    try {
      const { probabilities, ...others } = await model.predict(await (await fetch(image)).blob());
      found.push({ ...others, outlier: others.outlier ?? null, probabilities: [...probabilities] });
    } catch (error) {
      found.push({ error: error.message });
    }
  }
  return found;
}"""


def runtime_files() -> Path:
    """The folder with ONNX Runtime Web; skips the test if ``make node`` was not run."""
    folder = Path(NODE_PACKAGES)
    if not NODE_PACKAGES or not (folder / "node_modules" / onnxruntime_web.PACKAGE).is_dir():
        pytest.skip("no onnxruntime-web on this machine (make node, HEADSTART_NODE_PACKAGES)")
    return folder


def fake_runtime_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with other content, which then counts as the right one: for what needs no browser."""
    (folder / "dist").mkdir(parents=True)
    hashes = {}
    for name in onnxruntime_web.SHA256:
        data = f"content of {name}".encode() * 100
        (folder / "dist" / name).write_bytes(data)
        hashes[name] = hashlib.sha256(data).hexdigest()
    monkeypatch.setattr(onnxruntime_web, "SHA256", hashes)
    return folder


def write_page(model: Model, folder: Path, runtime: Path) -> Path:
    """The page of a model, without the comparison."""
    scratch = folder.with_name(f"{folder.name}-scratch")
    for made in (folder, scratch):
        made.mkdir(parents=True)
    FORMATS["web"].write(WriteRequest(model, folder, "", [], scratch, SilentProgress(), runtime_files=runtime))
    return folder


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def file_server(folder: Path) -> Iterator[str]:
    """Serves a folder as any file server does; yields its address, without a slash at the end."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def predict_in_page(page: Page, site: str, folder: str, images: Sequence[str], **options: Any) -> list[dict[str, Any]]:
    """Predictions of the module of an exported folder for images, in a page of the same site.

    Args:
        page: any page of the site, without a content security policy.
        site: address of the server.
        folder: path of the exported folder on the server.
        images: paths of the images on the server.
        options: of ``load``.
    """
    addresses = [f"{site}/{image}" for image in images]
    found: list[dict[str, Any]] = page.evaluate(PREDICT, [f"{site}/{folder}/headstart-web.js", addresses, options])
    return found
