"""Isolated environments: packages apart from this Python, made once, whole or not there."""

from __future__ import annotations

import subprocess
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from commands import main
from filelock import FileLock
from recorded_progress import RecordedProgress
from small_stores import simulate_disk

from headstart import isolated_environment
from headstart.cache.entries import ENVIRONMENTS, cache_entries, clear_cache
from headstart.cache.verify import verify_cache
from headstart.errors import ExportError
from headstart.exports.formats.fitted import CONVERTERS
from headstart.isolated_environment import IsolatedEnvironment, _packages_folder, _pip_fault
from headstart.progress import Progress, SilentProgress


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def environment(tmp_path: Path, *pins: str) -> IsolatedEnvironment:
    requirements = tmp_path / "stub.txt"
    requirements.write_text("# of a test\n" + "\n".join(pins or ("natsort==99.0", "other==1.0")) + "\n")
    return IsolatedEnvironment("stub", "export to a stub", requirements, 1_000_000, 2_000_000)


@pytest.fixture
def stub_pip(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """In place of pip: a module that also exists in this Python. Gives the folders that it was installed into."""
    installed = []

    def install(self: IsolatedEnvironment, progress: object) -> None:
        packages = _packages_folder(self.folder / "venv")
        (packages / "natsort.py").write_text("origin = 'stub'")
        installed.append(packages)

    monkeypatch.setattr(IsolatedEnvironment, "_install", install)
    return installed


def test_an_environment_is_made_once_on_top_of_this_python(tmp_path: Path, stub_pip: list[Path]) -> None:
    own, progress = environment(tmp_path), RecordedProgress()
    assert not own.is_ready
    python = own.ensure(progress)
    assert own.is_ready
    assert own.ensure(progress) == python
    assert len(stub_pip) == 1
    (said,) = progress.said
    assert "2 packages, about 1.0 MB to download and 2.0 MB on disk" in said
    assert f"headstart cache --clear --kind {ENVIRONMENTS}" in said
    code = (
        "import natsort, xxhash, importlib.util as u; print(natsort.origin, xxhash.__file__, u.find_spec('headstart'))"
    )
    done = subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True, check=True)
    origin, shared, _ = done.stdout.split()
    assert origin == "stub"
    assert not shared.startswith(str(own.folder))
    import natsort

    assert not hasattr(natsort, "origin")


def test_other_pins_are_another_environment(tmp_path: Path) -> None:
    assert environment(tmp_path).folder != environment(tmp_path, "natsort==98.0").folder
    assert environment(tmp_path).folder == environment(tmp_path).folder


def test_the_cache_lists_verifies_and_removes_it(
    tmp_path: Path, cache: Path, stub_pip: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    own = environment(tmp_path)
    own.ensure(SilentProgress())
    (entry,) = cache_entries(cache)
    assert entry.kind == ENVIRONMENTS
    assert entry.words.startswith("packages for stub, Python 3.")
    assert entry.bytes >= sum(file.lstat().st_size for file in (own.folder / "venv").rglob("*"))
    assert [one.sound for one in verify_cache([entry])] == [True]
    status, out, _ = main("cache", "--kind", ENVIRONMENTS, capsys=capsys)
    assert status == 0
    assert "packages for stub" in out
    clear_cache([entry])
    assert not own.folder.exists()
    assert not own.is_ready


def test_a_failed_installation_leaves_nothing_and_can_be_repeated(
    tmp_path: Path, cache: Path, stub_pip: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = environment(tmp_path)

    def fail(self: IsolatedEnvironment, progress: object) -> None:
        raise ExportError("no way")

    with monkeypatch.context() as patch:
        patch.setattr(IsolatedEnvironment, "_install", fail)
        with pytest.raises(ExportError, match=r"^export to a stub is not possible: no way\.$"):
            own.ensure(SilentProgress())
    assert cache_entries(cache) == []
    assert not own.folder.exists()
    own.ensure(SilentProgress())
    assert own.is_ready


def test_an_interrupted_installation_is_not_used(tmp_path: Path, stub_pip: list[Path]) -> None:
    own = environment(tmp_path)
    own.ensure(SilentProgress())
    (own.folder / "ready").unlink()
    (own.folder / "venv" / "half").write_text("")
    own.ensure(SilentProgress())
    assert len(stub_pip) == 2
    assert not (own.folder / "venv" / "half").exists()


def test_a_process_that_is_interrupted_while_it_waits_removes_nothing(
    tmp_path: Path, stub_pip: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = environment(tmp_path)
    half = own.folder / "venv" / "half"
    half.parent.mkdir(parents=True)
    half.write_text("")  # of the process that is installing

    def interrupted(_lock: FileLock) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FileLock, "acquire", interrupted)
        with pytest.raises(KeyboardInterrupt):
            own.ensure(SilentProgress())
    assert half.is_file()


def test_an_interrupted_installation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = environment(tmp_path)

    def interrupted(self: IsolatedEnvironment, progress: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(IsolatedEnvironment, "_install", interrupted)
    with pytest.raises(KeyboardInterrupt):
        own.ensure(SilentProgress())
    assert not own.folder.exists()


def test_who_waits_for_an_installation_that_fails_installs(
    tmp_path: Path, stub_pip: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, install = environment(tmp_path), IsolatedEnvironment._install
    installing, waits = threading.Event(), threading.Event()
    acquire = FileLock.acquire

    def fail_once(self: IsolatedEnvironment, progress: Progress) -> None:
        if installing.is_set():
            return install(self, progress)
        installing.set()
        assert waits.wait(10)
        time.sleep(0.1)  # the other one is about to wait for the lock
        raise ExportError("no way")

    def announced(lock: FileLock, *options: Any) -> Any:
        if installing.is_set():
            waits.set()
        return acquire(lock, *options)

    monkeypatch.setattr(IsolatedEnvironment, "_install", fail_once)
    monkeypatch.setattr(FileLock, "acquire", announced)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(own.ensure, SilentProgress())
        assert installing.wait(10)
        second = pool.submit(own.ensure, SilentProgress())
        with pytest.raises(ExportError, match="no way"):
            first.result()
        assert second.result().exists()
    assert own.is_ready
    assert len(stub_pip) == 1


def test_a_full_disk_is_reported_before_anything_is_installed(
    tmp_path: Path, stub_pip: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate_disk(monkeypatch)["free"] = 1_000_000
    with pytest.raises(ExportError, match=r"not possible: .*needs 2.0 MB more.*HEADSTART_CACHE"):
        environment(tmp_path).ensure(SilentProgress())
    assert stub_pip == []


def test_a_program_runs_without_headstart_and_its_last_line_is_the_error(tmp_path: Path, stub_pip: list[Path]) -> None:
    own = environment(tmp_path)
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text("import sys, natsort; open(sys.argv[1], 'w').write(natsort.origin)")
    bad.write_text("raise SystemExit('first line\\nthe reason')")
    own.run(good, [tmp_path / "out.txt"], SilentProgress())
    assert (tmp_path / "out.txt").read_text() == "stub"
    with pytest.raises(ExportError, match=r"^export to a stub failed: the reason\.$"):
        own.run(bad, [], SilentProgress())


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("WARNING: Retrying ... NewConnectionError('...')\nERROR: No matching distribution found for a==1", "network"),
        (
            "ERROR: No matching distribution found for jaxlib==0.10.2",
            r"jaxlib==0\.10\.2 is not available for this Python",
        ),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: something else.", "^pip failed: something else$"),
    ],
)
def test_why_pip_failed_is_said_with_the_remedy(said: str, message: str) -> None:
    import re

    assert re.search(message, _pip_fault(said.splitlines(keepends=True), "stub.txt"))


def test_the_environments_of_the_formats_pin_every_package() -> None:
    files = sorted((CONVERTERS.parent / "environments").glob("*.txt"))
    assert [file.stem for file in files] == ["coreml", "executorch", "litert"]
    for file in files:
        pins = IsolatedEnvironment(file.stem, "", file, 0, 0).pins
        assert pins
        assert all(pin.count("==") == 1 for pin in pins)


def wheel(folder: Path, name: str, version: str) -> None:
    """A package with one module."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", f"version = {version!r}")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


@pytest.mark.slow
@pytest.mark.parametrize("own_pip", [False, True])
def test_pip_installs_the_pins_from_an_index_without_network(
    own_pip: bool, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    if own_pip:  # as in an environment of uv, which has no pip
        find_spec: Callable[[str], Any] = lambda name: None  # noqa: E731
        monkeypatch.setattr(isolated_environment, "find_spec", find_spec)
    wheel(tmp_path, "headstart_stub", "1.5")
    own = environment(tmp_path, "headstart_stub==1.5", "headstart_other==2.0")
    with pytest.raises(ExportError, match=r"not possible: headstart_other==2\.0 is not available .*PIP_INDEX_URL"):
        own.ensure(SilentProgress())
    assert not own.folder.exists()
    wheel(tmp_path, "headstart_other", "2.0")
    progress = RecordedProgress()
    own.ensure(progress)
    program = tmp_path / "program.py"
    program.write_text(
        "import headstart_stub, headstart_other, sys; open(sys.argv[1], 'w').write(headstart_other.version)"
    )
    own.run(program, [tmp_path / "out.txt"], progress)
    assert (tmp_path / "out.txt").read_text() == "2.0"
