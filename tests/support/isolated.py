"""Isolated environments in tests: a stand-in that needs no network, and those that this machine has already."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from headstart.cache.entries import ENVIRONMENTS, cache_root
from headstart.isolated_environment import IsolatedEnvironment

USUAL_CACHE = cache_root()
"""The cache folder before the tests set another one."""

STUB_CONVERTER = """
import shutil, sys
from pathlib import Path

if sys.argv[1] == "quantize":
    shutil.copyfile(sys.argv[2], sys.argv[5])
elif sys.argv[1] == "count":
    Path(sys.argv[3]).write_text('{"convolutions": [1, 2], "products": [0, 1]}')
else:
    data = Path(sys.argv[-2]).read_bytes()[::-1]
    Path(sys.argv[-1]).write_bytes(len(data).to_bytes(8, "little") + data)
"""
"""In place of a converter: the length of the program, and its bytes in reverse, so that they are no ZIP archive."""

STUB_READER = """
import io, json, os, sys, zipfile

sys.path.append({readers!r})
from pillow_fit import fitted

def open_file(path):
    import torch

    with zipfile.ZipFile(path) as archive:
        metadata = archive.read("headstart.json").decode()
    data = open(path, "rb").read()
    program = data[8 : 8 + int.from_bytes(data[:8], "little")][::-1]
    module = torch.export.load(io.BytesIO(program)).module()
    preprocessing = json.loads(metadata)["preprocessing"]

    def predict(pixels):
        with torch.inference_mode():
            (image,) = pixels
            return [out.numpy() for out in module(pixels=torch.tensor(fitted(image, preprocessing)[None])).values()]

    return metadata, predict
"""
"""In place of a reader: runs what the stand-in of the converter wrote."""


def use_stub(monkeypatch: pytest.MonkeyPatch, folder: Path, format_name: str) -> None:
    """Formats run their converter and reader in this Python, with programs that do without other packages.

    Args:
        monkeypatch: ends it.
        folder: empty folder for the programs.
        format_name: name of the module of the format.
    """
    from headstart.exports import reader_process
    from headstart.exports.formats.registry import FORMATS

    folder.mkdir()
    (folder / "converter.py").write_text(STUB_CONVERTER)
    (folder / FORMATS[format_name].reader).write_text(STUB_READER.format(readers=str(reader_process.READERS)))
    monkeypatch.setattr(f"headstart.exports.formats.{format_name}.CONVERTER", folder / "converter.py")
    monkeypatch.setattr(IsolatedEnvironment, "ensure", lambda self, progress: Path(sys.executable))
    monkeypatch.setattr(reader_process, "READERS", folder)


def use_existing(monkeypatch: pytest.MonkeyPatch, environment: IsolatedEnvironment, cache: Path) -> None:
    """Uses an environment that the user's cache has, with an empty cache for the rest; skips the test if there is none.

    Args:
        monkeypatch: ends it.
        environment: the environment.
        cache: the cache folder of the test.
    """
    cache.mkdir(exist_ok=True)
    if not (cache / ENVIRONMENTS).exists():
        (cache / ENVIRONMENTS).symlink_to(USUAL_CACHE / ENVIRONMENTS)
    monkeypatch.setenv("HEADSTART_CACHE", str(cache))
    if not environment.is_ready:
        pytest.skip(f"no packages for {environment.name} in the cache (headstart export --to {environment.name})")
