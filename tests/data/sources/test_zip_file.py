"""Zip files: whatever is wrong with one is named."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from random_images import write_classes
from source_files import images_of, write_zip

import headstart as hs
from headstart.data.sources.read import read_image
from headstart.errors import DataError, UnreadableImage


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return images_of(write_classes(tmp_path_factory.mktemp("d"), {"blue": 4, "red": 4}))


def test_the_folder_that_archivers_add_is_passed_over(images: dict[str, bytes], tmp_path: Path) -> None:
    members = {f"flowers/{name}": data for name, data in images.items()} | {"__MACOSX/flowers/._0.png": b"x"}
    data = hs.open_data(write_zip(tmp_path / "f.zip", members))
    assert (data.classes, data.paths[0]) == (("blue", "red"), "f.zip::flowers/blue/0.png")


def test_split_folders_in_an_archive_are_the_splits(images: dict[str, bytes], tmp_path: Path) -> None:
    members = {f"d/{split}/{name}": data for split in ("train", "val") for name, data in images.items()}
    data = hs.open_data(write_zip(tmp_path / "f.zip", members))
    assert data.splits == ("train",) * 8 + ("val",) * 8


def test_archives_in_an_archive_are_reported(images: dict[str, bytes], tmp_path: Path) -> None:
    data = hs.open_data(write_zip(tmp_path / "f.zip", {**images, "blue/more.zip": b"x"}))
    assert ("nested-archive", ("blue/more.zip",)) in [(finding.kind, finding.items) for finding in data.findings]


def test_a_damaged_member_is_a_fault_of_one_image(images: dict[str, bytes], tmp_path: Path) -> None:
    file = write_zip(tmp_path / "f.zip", images, zipfile.ZIP_STORED)
    data = bytearray(file.read_bytes())
    place = data.index(images["red/1.png"]) + 100
    data[place] ^= 255
    file.write_bytes(data)
    with pytest.raises(UnreadableImage, match=r"f\.zip::red/1\.png: damaged in the archive: the checksum differs"):
        read_image(f"{file}::red/1.png")
    assert read_image(f"{file}::red/0.png") == images["red/0.png"]


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\5\6"])
def test_a_file_that_is_no_zip_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.zip: not a zip file"):
        hs.open_data(tmp_path / "a.zip")


def _with_flag(file: Path, name: str | None) -> None:
    """Marks members as encrypted, in their entries of the index."""
    data = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        place = archive.start_dir
        for entry in archive.infolist():
            if name in (None, entry.filename):
                data[place + 8] |= 1
            place += 46 + len(entry.filename)
    file.write_bytes(data)


def test_a_password_is_named(images: dict[str, bytes], tmp_path: Path) -> None:
    file = write_zip(tmp_path / "one.zip", images)
    _with_flag(file, "red/1.png")
    with pytest.raises(UnreadableImage, match="needs a password"):
        read_image(f"{file}::red/1.png")
    _with_flag(file, None)
    with pytest.raises(DataError, match=r"one\.zip: needs a password. Unpack it"):
        hs.open_data(file)


def test_a_compression_that_is_not_supported_is_named(images: dict[str, bytes], tmp_path: Path) -> None:
    file = write_zip(tmp_path / "f.zip", images, zipfile.ZIP_LZMA)
    with pytest.raises(UnreadableImage, match=r"compressed by LZMA, which is not supported; unpack"):
        read_image(f"{file}::red/1.png")


def test_backslashes_of_windows_are_separators(images: dict[str, bytes], tmp_path: Path) -> None:
    file = tmp_path / "w.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in [*images.items(), ("empty/", b"")]:
            archive.writestr(zipfile.ZipInfo(name.replace("/", "\\")), data)
    data = hs.open_data(file)
    assert (data.classes, data.findings) == (("blue", "red"), ())
    assert all(read_image(address) == images[address.partition("::")[2]] for address in data.files())


def test_names_that_lead_out_of_the_archive_are_left_out_and_named(images: dict[str, bytes], tmp_path: Path) -> None:
    (first, *_) = images.values()
    data = hs.open_data(write_zip(tmp_path / "o.zip", {**images, "../x/0.png": first, "blue/../red/9.png": first}))
    assert [(finding.kind, finding.items) for finding in data.findings] == [("member-outside", ("../x/0.png",))]
    assert [path for path in data.paths if path.endswith("9.png")] == ["o.zip::red/9.png"]
