"""One function reads the bytes of every image, wherever it is."""

from __future__ import annotations

import os
import threading
import zipfile
from pathlib import Path

import pytest
from random_images import write_classes
from source_files import images_of, write_every_source, write_parquet, write_tar, write_zip

import headstart as hs
from headstart.data.scan import scan
from headstart.data.sources import parquet_file
from headstart.data.sources.containers import open_container
from headstart.data.sources.local import LocalStore
from headstart.data.sources.read import read_image, reading_order
from headstart.errors import UnreadableImage


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("sources") / "d", {"blue": 12, "red": 12})


@pytest.fixture(scope="module")
def sources(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_every_source(tmp_path_factory.mktemp("files"), folder)


def test_every_source_gives_the_images_and_labels_of_the_folder(folder: Path, sources: dict[str, Path]) -> None:
    expected = hs.open_data(folder)
    contents = list(images_of(folder).values())
    for kind, file in sources.items():
        data = hs.open_data(file)
        assert (data.classes, data.label_names()) == (expected.classes, expected.label_names()), kind
        assert [read_image(address) for address in data.files()] == contents, kind
        assert all(path.startswith(f"{file.name}::") for path in data.paths), kind
        assert data.findings == (), kind


def test_a_scan_of_every_source_has_the_keys_and_facts_of_the_folder(
    folder: Path, sources: dict[str, Path], tmp_path: Path
) -> None:
    expected = scan(hs.open_data(folder).files(), cache=tmp_path / "folder")
    for kind, file in sources.items():
        found = scan(hs.open_data(file).files(), cache=tmp_path / kind)
        assert found.keys == expected.keys, kind
        assert found.facts.tobytes() == expected.facts.tobytes(), kind


def test_members_are_read_in_the_order_of_their_container(sources: dict[str, Path]) -> None:
    for kind in ("tar", "zip", "parquet"):
        files = hs.open_data(sources[kind]).files()[::-1]
        assert reading_order(files) == list(range(len(files)))[::-1], kind
    assert reading_order(["b.jpg", "a.jpg"]) == [0, 1]


@pytest.mark.parametrize(
    ("kind", "member", "reason"),
    [
        ("tar", "gone.png", "no such file in the archive"),
        ("zip", "gone.png", "no such file in the archive"),
        ("parquet", "24", "no such row; the table has 24"),
        ("parquet", "x/1", "no column 'x'"),
    ],
)
def test_a_missing_member_is_a_fault_of_one_image(
    sources: dict[str, Path], kind: str, member: str, reason: str
) -> None:
    with pytest.raises(UnreadableImage) as raised:
        read_image(f"{sources[kind]}::{member}")
    assert (raised.value.path, raised.value.reason) == (f"{sources[kind]}::{member}", reason)


def test_a_missing_or_damaged_container_is_a_fault_of_each_of_its_images(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match=r"gone\.tar::a\.png: no such file or directory"):
        read_image(f"{tmp_path}/gone.tar::a.png")
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(UnreadableImage, match=r"text\.zip::a\.png: not a zip file"):
        read_image(f"{tmp_path}/text.zip::a.png")


def test_a_container_that_changes_is_indexed_again(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "a.tar", [("x", b"one")])
    assert read_image(f"{file}::x") == b"one"
    assert open_container(str(file)) is open_container(str(file))
    write_tar(file, [("w", b"0" * 600), ("x", b"two")])
    assert read_image(f"{file}::x") == b"two"


def test_threads_read_from_one_container_at_once(folder: Path, sources: dict[str, Path]) -> None:
    contents = list(images_of(folder).values())
    wrong: list[str] = []

    def read(file: Path, step: int) -> None:
        files = hs.open_data(file).files()
        wrong.extend(files[i] for i in range(0, len(files), step) if read_image(files[i]) != contents[i])

    threads = [threading.Thread(target=read, args=(f, step)) for f in sources.values() for step in (1, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_reads_from_containers_of_its_parent(folder: Path, sources: dict[str, Path]) -> None:
    contents = list(images_of(folder).values())
    files = [hs.open_data(file).files() for file in sources.values()]
    assert all(read_image(addresses[3]) == contents[3] for addresses in files)
    child = os.fork()
    if not child:
        os._exit(0 if all(read_image(addresses[i]) == contents[i] for addresses in files for i in (20, 2)) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_no_file_of_an_archive_stays_open(sources: dict[str, Path]) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    for kind in ("tar", "zip"):
        read_image(hs.open_data(sources[kind]).files()[0])
        held = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if _is_open(name)]
        assert str(sources[kind]) not in held


def _is_open(name: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{name}")


def test_zip_files_of_every_usual_compression_are_read(folder: Path, tmp_path: Path) -> None:
    images = images_of(folder)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(tmp_path / f"{method}.zip", "w", method) as archive:
            for name, data in images.items():
                archive.writestr(name, data)
        data = hs.open_data(tmp_path / f"{method}.zip")
        assert [read_image(address) for address in data.files()] == list(images.values())


MANY = {f"{label}/{number:04}.png": bytes([number % 256]) * 900 for label in ("a", "b") for number in range(500)}
"""Contents of a large archive; they need not be images."""

SHARD = range(400, 410)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_shard_of_a_large_archive_touches_only_its_members(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / f"d.{kind}"
    write_tar(file, MANY.items()) if kind == "tar" else write_zip(file, MANY, zipfile.ZIP_STORED)
    names = open_container(str(file)).contents.names
    touched: list[range] = []
    real = LocalStore.read_range

    def read_range(store: LocalStore, address: str, offset: int, length: int) -> bytes:
        touched.append(range(offset, offset + length))
        return real(store, address, offset, length)

    monkeypatch.setattr(LocalStore, "read_range", read_range)
    for name in ("read", "open"):
        monkeypatch.setattr(LocalStore, name, lambda *_: pytest.fail("the whole archive is read"))
    assert [read_image(f"{file}::{names[i]}") for i in SHARD] == [MANY[names[i]] for i in SHARD]
    assert len(touched) == len(SHARD)
    assert sum(map(len, touched)) < len(SHARD) * 1500  # content, a header and what may follow it
    assert max(part.stop for part in touched) - min(part.start for part in touched) < len(SHARD) * 2000


def test_a_shard_of_a_large_table_touches_only_its_groups_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_parquet(tmp_path / "d.parquet", MANY, row_group_size=10)
    container = open_container(str(file))
    groups: list[int] = []
    real = parquet_file.record_batches

    def record_batches(table: object, group: int, columns: list[str]) -> object:
        groups.append(group)
        return real(table, group, columns)

    monkeypatch.setattr(parquet_file, "record_batches", record_batches)
    contents = list(MANY.values())
    assert [container.read(str(i)) for i in (*SHARD, 410)] == [contents[i] for i in (*SHARD, 410)]
    assert groups == [40, 41]
