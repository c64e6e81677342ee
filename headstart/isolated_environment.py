"""Isolated environments: packages that Headstart does not depend on, installed in a folder of the cache.

A converter of another project may need hundreds of megabytes of packages, in versions that others contradict. They are
installed into a virtual environment that is created at first use, on top of the packages of this Python: PyTorch is
not installed twice, has the same version, and nothing of this environment changes. Work is handed over as files.

    environments/DIGEST/
        about.json   what it is, for ``headstart cache``
        venv/        the virtual environment
        ready        written last
        used, lock   as in other entries of the cache
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, final

from filelock import FileLock

from headstart.cache.budget import make_space
from headstart.cache.entries import ENVIRONMENTS, cache_root, size_text
from headstart.cache.store_files import STORE_VERSION
from headstart.errors import CacheError, ExportError
from headstart.extras import version_of
from headstart.files import write_atomically
from headstart.progress import Progress

VERSION: Final = 1
"""Incremented whenever an environment is made in another way; environments of other versions are not used."""

_BASE: Final = "headstart-base.pth"
"""File of the virtual environment that names the folders of this Python's packages, which are found last."""

_UNREACHABLE: Final = re.compile(
    r"NewConnectionError|NameResolution|Temporary failure|ConnectTimeout|ProxyError|SSLError"
)
_NOT_FOUND: Final = re.compile(r"No matching distribution found for (\S+)")


@final
@dataclass(frozen=True)
class IsolatedEnvironment:
    """Pinned packages in a folder of the cache, on top of the packages of this Python.

    Attributes:
        name: short name, for ``headstart cache``.
        purpose: what needs it, for messages: "export to LiteRT".
        requirements: file with one pinned requirement per line; dependencies are listed too.
        download: bytes that are downloaded, about.
        size: bytes on disk, about.
    """

    name: str
    purpose: str
    requirements: Path
    download: int
    size: int

    @property
    def pins(self) -> tuple[str, ...]:
        """The requirements, as ``name==version``."""
        lines = self.requirements.read_text(encoding="utf-8").splitlines()
        return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))

    def versions(self, *packages: str) -> dict[str, str]:
        """Package -> pinned version."""
        pinned = {name: version for name, _, version in (pin.partition("==") for pin in self.pins)}
        return {name: pinned[name] for name in packages}

    @property
    def folder(self) -> Path:
        """Its folder in the cache, which need not exist; another one for other packages below it."""
        made_of = [VERSION, sys.version, self.name, self.pins, _base_folders(), version_of("torch")]
        digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:24]
        return cache_root() / ENVIRONMENTS / digest

    @property
    def python(self) -> Path:
        """Its Python."""
        return self.folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def is_ready(self) -> bool:
        """Whether it has been created completely."""
        return (self.folder / "ready").is_file() and self.python.exists()

    def ensure(self, progress: Progress) -> Path:
        """Creates the environment unless it exists.

        Args:
            progress: receives what is installed, and where.

        Returns:
            Path of its Python.

        Raises:
            ExportError: no network, no disk space, no file locks, or a package does not exist for this Python. Nothing
                is left behind.
        """
        folder = self.folder
        try:
            while not self.is_ready:
                folder.mkdir(parents=True, exist_ok=True)
                lock = FileLock(folder / "lock")
                try:
                    lock.acquire()
                except FileNotFoundError:
                    continue  # another process has failed at this moment and has removed the folder
                with lock:
                    lock.release()  # held once now, by the block
                    self._create_under_lock(folder, progress)
        except (OSError, NotImplementedError, CacheError, ExportError) as error:
            why = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            raise ExportError(f"{self.purpose} is not possible: {why.rstrip('.')}.") from error
        with suppress(OSError):  # the environment of another user
            os.utime(folder / "used")
        return self.python

    def run(self, program: Path, arguments: Sequence[str | Path], progress: Progress) -> None:
        """Runs a program in the environment, which is created if it does not exist.

        The program finds nothing of Headstart, and no ``PYTHONPATH``. What it prints is kept for the error.

        Raises:
            ExportError: the environment cannot be created, or the program fails; has the last line that it printed.
        """
        python = self.ensure(progress)
        command = [str(python), "-I", str(program), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
        if done.returncode:
            raise ExportError(f"{self.purpose} failed: {_last_line(done.stderr) or f'status {done.returncode}'}.")

    def _create_under_lock(self, folder: Path, progress: Progress) -> None:
        """Creates the environment, or removes what it has created so far.

        Nothing is removed outside the lock: another process may be installing. Returns without an environment if
        another process has failed meanwhile and has removed the folder together with the lock file.
        """
        if self.is_ready or not (folder / "lock").exists():
            return
        try:
            self._create(folder, progress)
        finally:
            if not self.is_ready:
                shutil.rmtree(folder, ignore_errors=True)

    def _create(self, folder: Path, progress: Progress) -> None:
        make_space(cache_root(), self.size, folder=folder, keep=())
        about = {"environment": self.name, "python": sys.version.split()[0]}
        document = {"store": STORE_VERSION, "row_bytes": 0, "about": about, "bytes": self.size}
        write_atomically(folder / "about.json", json.dumps(document).encode())
        write_atomically(folder / "used", b"")
        progress.say(
            f"{self.purpose[0].upper()}{self.purpose[1:]} uses packages that Headstart does not depend on. Installing "
            f"them once, apart from this Python, in {folder}: {len(self.pins)} packages, about "
            f"{size_text(self.download)} to download and {size_text(self.size)} on disk. "
            f"headstart cache --clear --kind {ENVIRONMENTS} removes them."
        )
        shutil.rmtree(folder / "venv", ignore_errors=True)
        own_pip = ["--without-pip"] if find_spec("pip") else []
        made = subprocess.run(
            [sys.executable, "-m", "venv", *own_pip, str(folder / "venv")], capture_output=True, text=True
        )
        if made.returncode:
            why = _last_line(made.stdout + made.stderr)
            raise ExportError(f"python -m venv failed ({why}). Install Python's venv module, on Debian python3-venv")
        _packages_folder(folder / "venv").joinpath(_BASE).write_text("\n".join(_base_folders()), encoding="utf-8")
        self._install(progress)
        size = sum(file.lstat().st_size for file in folder.rglob("*"))
        write_atomically(folder / "about.json", json.dumps(document | {"bytes": size}).encode())
        write_atomically(folder / "ready", b"")

    def _install(self, progress: Progress) -> None:
        pip = [sys.executable, "-m", "pip", "--python"] if find_spec("pip") else []
        options = ["install", "--no-deps", "--ignore-installed", "--only-binary", ":all:", "--no-input"]
        options += ["--disable-pip-version-check", "--retries", "2", "--progress-bar", "off"]
        command = [*pip, str(self.python), *([] if pip else ["-m", "pip"]), *options, *self.pins]
        said = []
        with (
            progress.task(f"Installing packages for {self.purpose}", len(self.pins), "packages") as advance,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
            ) as process,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line)
                if line.startswith(("Collecting ", "Processing ")):
                    advance(1)
        if process.returncode:
            raise ExportError(_pip_fault(said, self.requirements.name))


def _pip_fault(said: Sequence[str], requirements: str) -> str:
    """Why pip failed, and what to do."""
    text = "".join(said)
    missing = _NOT_FOUND.search(text)
    if _UNREACHABLE.search(text):
        return (
            "its packages cannot be downloaded: the package index cannot be reached. Connect this machine to the "
            "network (once), or set PIP_INDEX_URL or PIP_PROXY, and run the command again"
        )
    if missing:
        return (
            f"{missing[1]} is not available for this Python ({sys.version.split()[0]}, {sys.platform}) from the "
            "package index that pip uses. Connect this machine to the network, or use an index that has the packages "
            f"of {requirements} (PIP_INDEX_URL, PIP_FIND_LINKS)"
        )
    if "No space left" in text:
        return "the disk is full. Free some space, or set HEADSTART_CACHE (and TMPDIR) to a folder on a larger disk"
    return f"pip failed: {_last_line(text)}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ").rstrip(".") if lines else ""


def _base_folders() -> list[str]:
    """The folders with packages of this Python, in its order."""
    return [str(Path(path).resolve()) for path in _unique(sys.path) if Path(path).name in _PACKAGES]


_PACKAGES: Final = ("site-packages", "dist-packages")


def _unique(paths: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(paths))


def _packages_folder(environment: Path) -> Path:
    """The folder for packages of a virtual environment."""
    (folder,) = environment.glob("Lib/site-packages" if os.name == "nt" else "lib/python*/site-packages")
    return folder
