"""ONNX Runtime Web comes from where the user says, from this machine, or from npm, and is one known version."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import pytest
from recorded_progress import RecordedProgress
from web_pages import fake_runtime_files

from headstart.errors import ExportError
from headstart.exports import onnxruntime_web
from headstart.exports.onnxruntime_web import PACKAGE, SHA256, VERSION, find_runtime, read_runtime_file
from headstart.progress import SilentProgress


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(onnxruntime_web.shutil, "which", lambda name: None)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return fake_runtime_files(tmp_path / "package", monkeypatch)


def found(given: Path | None, tmp_path: Path) -> Path:
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    return find_runtime(given, scratch, SilentProgress())


def packed(package: Path, file: Path) -> Path:
    with tarfile.open(file, "w:gz") as archive:
        archive.add(package, "package")
    return file


def test_the_package_is_given_as_a_folder_its_dist_a_parent_of_node_modules_or_an_archive(
    package: Path, tmp_path: Path
) -> None:
    dist = package / "dist"
    assert found(package, tmp_path) == found(dist, tmp_path) == dist
    (tmp_path / "site" / "node_modules").mkdir(parents=True)
    (tmp_path / "site" / "node_modules" / PACKAGE).symlink_to(package)
    assert found(tmp_path / "site", tmp_path) == tmp_path / "site" / "node_modules" / PACKAGE / "dist"
    unpacked = found(packed(package, tmp_path / "package.tgz"), tmp_path)
    assert all(read_runtime_file(unpacked, name) == (dist / name).read_bytes() for name in SHA256)


def test_without_a_folder_it_is_found_in_node_modules_above_the_working_folder(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = tmp_path / "site" / "deep" / "below"
    below.mkdir(parents=True)
    (tmp_path / "site" / "node_modules").mkdir()
    (tmp_path / "site" / "node_modules" / PACKAGE).symlink_to(package)
    monkeypatch.chdir(below)
    assert found(None, tmp_path).parts[-3:] == ("node_modules", PACKAGE, "dist")


def test_npm_downloads_it_once_into_the_cache_and_says_so(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def npm(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        assert command[1:3] == ["pack", f"{PACKAGE}@{VERSION}"]
        packed(package, Path(command[-1]) / f"{PACKAGE}-{VERSION}.tgz")
        return subprocess.CompletedProcess(command, 0, b"", b"")

    monkeypatch.setattr(onnxruntime_web.shutil, "which", lambda name: name)
    monkeypatch.setattr(onnxruntime_web.subprocess, "run", npm)
    progress, scratch = RecordedProgress(), tmp_path / "first"
    scratch.mkdir()
    find_runtime(None, scratch, progress)
    assert any("Downloading" in words and "npm" in words for words in progress.said)
    monkeypatch.setattr(onnxruntime_web.subprocess, "run", None)
    assert found(None, tmp_path) == tmp_path / "cache" / f"{PACKAGE}-{VERSION}"


def test_what_is_missing_or_different_is_an_error_with_the_remedy(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = next(iter(SHA256))
    with pytest.raises(ExportError, match=r"not on this machine\. .*npm pack .*--ort-files"):
        found(None, tmp_path)
    with pytest.raises(ExportError, match=r"gone: no such folder or archive\. .*--ort-files"):
        found(tmp_path / "gone", tmp_path)
    with pytest.raises(ExportError, match="contains no files of"):
        found(tmp_path / "empty", tmp_path)
    (package / "dist" / name).write_text("another version")
    with pytest.raises(ExportError, match=rf"{name}: missing, or not the file of {PACKAGE} {VERSION}"):
        found(package, tmp_path)
    with pytest.raises(ExportError, match=f"{name} is not the file of"):
        found(packed(package, tmp_path / "package.tgz"), tmp_path)
    with pytest.raises(ExportError, match=f"not the file of {PACKAGE}"):
        read_runtime_file(package / "dist", name)
    (tmp_path / "text.tgz").write_text("no archive")
    with pytest.raises(ExportError, match=r"text\.tgz: not the archive of"):
        found(tmp_path / "text.tgz", tmp_path)
    failed = subprocess.CompletedProcess([], 1, b"", b"npm error network\nmore")
    monkeypatch.setattr(onnxruntime_web.shutil, "which", lambda name: name)
    monkeypatch.setattr(onnxruntime_web.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ExportError, match=r"npm cannot download it \(npm error network\)"):
        found(None, tmp_path)
    with pytest.raises(ExportError, match="not on this machine"):
        find_runtime(None, tmp_path, SilentProgress(), may_download=False)
