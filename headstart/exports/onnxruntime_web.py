"""ONNX Runtime Web: the files of the npm package that an exported page needs, from a folder, an archive, or npm.

No package of PyPI has them. Only one version is used, whose files are known by their SHA-256.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from headstart.cache.entries import cache_root
from headstart.errors import CacheError, ExportError
from headstart.files import write_atomically
from headstart.progress import Progress

PACKAGE: Final = "onnxruntime-web"
VERSION: Final = "1.30.0"

SHA256: Final = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    "ort.jspi.min.mjs": "bc57179d923fda2d88d4a395359c8df44399dde087bf9ff44fc0e40ab398e4d9",
    "ort-wasm-simd-threaded.jspi.mjs": "270e2c6da9f297239d301d329782b6446641cb1e16a77967690adcfca35f3268",
    "ort-wasm-simd-threaded.jspi.wasm": "a54c76f86b0f0d9572380cf1c6292a7b3903716ffcbcd6b0e5c7050bf430eb93",
}
"""Files of the package's folder ``dist``: for the CPU, and for WebGPU."""

PACKED_MB: Final = 33
"""Size of the package's archive, which npm downloads."""

NPM_SECONDS: Final = 600
"""Time after which a download by npm is given up."""

REMEDY: Final = (
    f"Where npm is, run: npm pack {PACKAGE}@{VERSION}. Give the archive, or a folder with its files: "
    f"--ort-files {PACKAGE}-{VERSION}.tgz (ort_files)"
)


def find_runtime(given: Path | None, scratch: Path, progress: Progress, *, may_download: bool = True) -> Path:
    """The folder with the files of ``SHA256``.

    Without ``given`` they come from ``node_modules`` of the working folder or a folder above it, from Headstart's
    cache, or from npm, which downloads them into the cache once.

    Args:
        given: the package's folder or archive (.tgz), or a folder with ``node_modules``; None to look for it.
        scratch: an empty folder for intermediate files.
        progress: is informed before anything is downloaded.
        may_download: whether npm may be used.

    Raises:
        ExportError: the files are not there, are of another version, or cannot be downloaded.
    """
    if given is not None:
        return _given(given, scratch)
    kept = _cache_folder()
    here = Path.cwd()
    for folder in [*_places(here), *(place for above in here.parents for place in _places(above)), *kept]:
        if _differing(folder) is None:
            return folder
    return _from_npm(scratch, kept, progress, shutil.which("npm") if may_download else None)


def read_runtime_file(folder: Path, name: str) -> bytes:
    """A file of ``find_runtime``'s folder.

    Raises:
        ExportError: it is not the file of ``SHA256``.
    """
    data = (folder / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256[name]:
        raise ExportError(f"{folder / name}: not the file of {PACKAGE} {VERSION}. {REMEDY}.")
    return data


def _given(given: Path, scratch: Path) -> Path:
    if not given.exists():
        raise ExportError(f"{given}: no such folder or archive. {REMEDY}.")
    if given.is_file():
        return _unpack(given, scratch / PACKAGE)
    folders = [given, given / "dist", *_places(given)]
    folder = next((folder for folder in folders if any((folder / name).is_file() for name in SHA256)), None)
    if folder is None:
        raise ExportError(f"{given}: contains no files of {PACKAGE}. {REMEDY}.")
    if (name := _differing(folder)) is not None:
        raise ExportError(f"{folder / name}: missing, or not the file of {PACKAGE} {VERSION}. {REMEDY}.")
    return folder


def _places(folder: Path) -> Iterator[Path]:
    yield folder / "node_modules" / PACKAGE / "dist"


def _differing(folder: Path) -> str | None:
    """The first file that is missing or has another content; None if there is none."""
    for name, expected in SHA256.items():
        try:
            data = (folder / name).read_bytes()
        except OSError:
            return name
        if hashlib.sha256(data).hexdigest() != expected:
            return name
    return None


def _cache_folder() -> list[Path]:
    try:
        return [cache_root() / f"{PACKAGE}-{VERSION}"]
    except CacheError:
        return []


def _from_npm(scratch: Path, kept: list[Path], progress: Progress, npm: str | None) -> Path:
    if npm is None:
        raise ExportError(f"a page needs {PACKAGE} {VERSION}, which is not on this machine. {REMEDY}.")
    progress.say(f"Downloading {PACKAGE} {VERSION} with npm ({PACKED_MB} MB), for this and later exports.")
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent", "--pack-destination", str(scratch)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=NPM_SECONDS, cwd=scratch
        )
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"status {done.returncode}"]
    except (OSError, subprocess.TimeoutExpired) as error:
        said = [str(error)]
    archive = scratch / f"{PACKAGE}-{VERSION}.tgz"
    if not archive.is_file():
        raise ExportError(f"{PACKAGE} {VERSION}: npm cannot download it ({said[0]}). {REMEDY}.")
    folder = _unpack(archive, scratch / PACKAGE)
    archive.unlink()
    with suppress(OSError):  # a cache that cannot be written costs another download
        for target in kept:
            for name in SHA256:
                write_atomically(target / name, (folder / name).read_bytes())
    return folder


def _unpack(archive: Path, folder: Path) -> Path:
    """Extracts the files of ``SHA256`` from the package's archive."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive) as opened:
            for name in SHA256:
                found = opened.extractfile(f"package/dist/{name}")
                assert found is not None
                (folder / name).write_bytes(found.read())
    except (OSError, EOFError, KeyError, AssertionError, tarfile.TarError) as error:
        raise ExportError(f"{archive}: not the archive of {PACKAGE} {VERSION} ({error}). {REMEDY}.") from error
    if (name_of := _differing(folder)) is not None:
        raise ExportError(f"{archive}: {name_of} is not the file of {PACKAGE} {VERSION}. {REMEDY}.")
    return folder
