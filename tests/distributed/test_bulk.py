"""Shards of many images: what tells that images have changed, and that a folder is for other images."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
from object_storage import web_server

from headstart.data.streamed_dataset import StreamedPaths
from headstart.distributed.bulk import _version_reader


def test_a_changed_archive_behind_a_url_has_another_version(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    with web_server(tmp_path) as (address, requested):
        versions = []
        for content in (b"1", b"22"):
            with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
                archive.writestr("cat/1.png", content)
            version_of = _version_reader()
            versions.append(version_of(f"{address}/a.zip::cat/1.png"))
            count = len(requested)
            assert version_of(f"{address}/a.zip::cat/2.png") == versions[-1]
            assert version_of(f"{address}/cat/1.png") == ""
            assert len(requested) == count
    assert versions[0] != versions[1]


def test_paths_know_the_folders_that_they_are_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").mkdir()
    for name in ("1.png", "2.png", "new/3.png"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert StreamedPaths(["1.png", "2.png", "new"]).sources == (os.fspath(tmp_path), os.fspath(tmp_path / "new"))
