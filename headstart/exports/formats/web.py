"""A page that classifies images in the browser: a folder of static files. Variant: int8.

The model is the file of the format "onnx". ONNX Runtime Web computes it: on the CPU in WebAssembly, and for float32
with WebGPU where the browser has it. The WebAssembly is compressed, as most file servers do not compress.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from headstart.exports.formats import onnx
from headstart.exports.formats.interface import ExportFormat, QuantizedLayers, WriteRequest, WrittenFiles
from headstart.exports.onnxruntime_web import PACKAGE, VERSION, find_runtime, read_runtime_file
from headstart.exports.readers.web_reader import DOCUMENT
from headstart.exports.snippets import browser_snippet, page_snippet

NAME: Final = "web"

WEB_VERSION: Final = 1
"""Version of ``DOCUMENT``; incremented whenever a key changes its meaning."""

MODEL_FILE: Final = "model.onnx"

GPU_GRAPHS: Final = {"resize": "resize.onnx", "network": "network.onnx"}
"""Graphs for WebGPU, see ``gpu_graphs``."""

PAGE_FILES: Final = (
    "index.html",
    "page.css",
    "page.js",
    "icon.svg",
    "headstart-web.js",
    "pixels.js",
    "headstart-web.d.ts",
    "licenses.txt",
)
"""Files that are the same in every export."""

SERVICE_WORKER: Final = "service-worker.js"

RUNTIMES: Final = {
    "wasm": {
        "script": "ort.wasm.min.mjs",
        "glue": "ort-wasm-simd-threaded.mjs",
        "binary": "ort-wasm-simd-threaded.wasm",
    },
    "webgpu": {
        "script": "ort.jspi.min.mjs",
        "glue": "ort-wasm-simd-threaded.jspi.mjs",
        "binary": "ort-wasm-simd-threaded.jspi.wasm",
    },
}
"""Backend -> files of ONNX Runtime Web."""


def _write(request: WriteRequest) -> WrittenFiles:
    runtime = find_runtime(request.runtime_files, request.scratch, request.progress, may_download=request.may_download)
    folder = request.file
    written = onnx.FORMAT.write(replace(request, file=folder / MODEL_FILE))
    request.progress.say(f"Adding the page and {PACKAGE} {VERSION}.")
    for name in PAGE_FILES:
        (folder / name).write_bytes(_page_file(name))
    has_gpu = not request.variant and _add_gpu_graphs(folder)  # a graph of 8 bits runs on the CPU only
    kinds = list(RUNTIMES) if has_gpu else ["wasm"]
    runtimes = {kind: _add_runtime(folder, runtime, RUNTIMES[kind]) for kind in kinds}
    _add_documents(folder, runtimes)
    name = f"{NAME} {request.variant}" if request.variant else NAME
    return WrittenFiles(written.metadata, dict(list(written.files.items())[:-1]) | {name: folder})


def _page_file(name: str) -> bytes:
    return (files("headstart.exports") / "web_page" / name).read_bytes()


def _add_gpu_graphs(folder: Path) -> bool:
    from headstart.exports.gpu_graphs import split_for_gpu

    graphs = split_for_gpu(folder / MODEL_FILE)
    if graphs is None:
        return False
    for name, data in zip(GPU_GRAPHS.values(), graphs, strict=True):
        (folder / name).write_bytes(data)
    return True


def _add_runtime(folder: Path, runtime: Path, names: dict[str, str]) -> dict[str, str]:
    """Adds the files of a backend; returns their names in the folder.

    Scripts end in ".js": some servers do not know the media type of ".mjs", without which browsers refuse a script.
    """
    added = {}
    for role, name in names.items():
        data = read_runtime_file(runtime, name)
        if role == "binary":
            added[role], data = f"{name}.gz", gzip.compress(data, compresslevel=9, mtime=0)
        else:
            added[role] = f"{name.removesuffix('.mjs')}.js"
        (folder / added[role]).write_bytes(data)
    return added


def _add_documents(folder: Path, runtimes: dict[str, dict[str, str]]) -> None:
    """Adds the service worker, whose content changes with every file, and the document, which lists all files."""
    model = (folder / MODEL_FILE).read_bytes()
    about: dict[str, Any] = {
        "headstart_web": WEB_VERSION,
        "model_file": MODEL_FILE,
        "gpu_graphs": GPU_GRAPHS if "webgpu" in runtimes else None,
        "runtimes": runtimes,
        "runtime_version": VERSION,
        "metadata": json.loads(model[model.rindex(b'{"headstart_export"') :]),
        "files": {file.name: _description(file) for file in sorted(folder.iterdir())},
    }
    version = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    kept = json.dumps([*about["files"], DOCUMENT])
    worker = _page_file(SERVICE_WORKER).decode().replace("{{version}}", version).replace("{{files}}", kept)
    (folder / SERVICE_WORKER).write_text(worker, encoding="utf-8", newline="\n")
    about["files"][SERVICE_WORKER] = _description(folder / SERVICE_WORKER)
    (folder / DOCUMENT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8", newline="\n")


def _description(file: Path) -> dict[str, int | str]:
    data = file.read_bytes()
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _count_quantized(folder: Path) -> QuantizedLayers:
    assert onnx.FORMAT.count_quantized is not None
    return onnx.FORMAT.count_quantized(folder / MODEL_FILE)


FORMAT = ExportFormat(
    NAME,
    "_web",
    _write,
    "web_reader.py",
    variants=onnx.FORMAT.variants,
    snippets={"shell": page_snippet, "javascript": browser_snippet},
    count_quantized=_count_quantized,
    marker=DOCUMENT,
    not_checked="The page and its decoding of images were not checked: that needs a browser. Its model.onnx was.",
    extra="export",
)
