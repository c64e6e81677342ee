"""Tar files: whatever is wrong with one is named, and the files before the damage are used."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from random_images import write_classes
from source_files import images_of, webdataset_members, write_tar

import headstart as hs
from headstart.data.listing import find_images
from headstart.data.scan import scan
from headstart.data.sources.read import read_image
from headstart.errors import DataError, UnreadableImage


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return images_of(write_classes(tmp_path_factory.mktemp("d"), {"blue": 4, "red": 4}))


def test_a_truncated_tar_gives_the_images_before_the_damage(images: dict[str, bytes], tmp_path: Path) -> None:
    file = write_tar(tmp_path / "t.tar", images.items())
    with tarfile.open(file) as archive:
        members = archive.getmembers()
    file.write_bytes(file.read_bytes()[: members[5].offset_data + 10])
    data = hs.open_data(file)
    assert [finding.kind for finding in data.findings] == ["damaged-archive"]
    assert "unexpected end of data after 6 files" in data.findings[0].message
    scanned = scan(data.files(), cache=tmp_path / "cache")
    faults = {data.paths[i]: fault for i, fault in scanned.faults.items()}
    assert faults == {"t.tar::red/1.png": "the archive ends before the end of this file"}
    with pytest.raises(UnreadableImage, match=r"the archive is damaged \(unexpected end of data"):
        read_image(f"{file}::red/3.png")


def test_a_list_of_images_ends_with_what_is_lost_in_a_damaged_archive(images: dict[str, bytes], tmp_path: Path) -> None:
    whole, file = write_tar(tmp_path / "whole.tar", images.items()), write_tar(tmp_path / "t.tar", images.items())
    with tarfile.open(file) as archive:
        content = bytearray(file.read_bytes())
        content[archive.getmembers()[3].offset + 150] ^= 1  # the checksum of the header
    file.write_bytes(content)
    assert len(find_images(whole)) == 8
    *found, lost = find_images(file)
    assert found == [f"{file}::blue/{i}.png" for i in range(3)]
    assert lost == f"{file}::(files after the damage)"
    with pytest.raises(UnreadableImage, match=r"the archive is damaged \(.* after 3 files|no valid header"):
        read_image(lost)


def test_damage_that_leaves_one_class_is_named(images: dict[str, bytes], tmp_path: Path) -> None:
    file = write_tar(tmp_path / "t.tar", images.items())
    with tarfile.open(file) as archive:
        file.write_bytes(file.read_bytes()[: archive.getmembers()[2].offset_data + 10])
    with pytest.raises(DataError, match=r"found one class, blue; .* t\.tar: the archive is damaged: unexpected end"):
        hs.open_data(file)


def test_bytes_that_are_no_header_are_damage(images: dict[str, bytes], tmp_path: Path) -> None:
    file = write_tar(tmp_path / "t.tar", images.items())
    with tarfile.open(file) as archive:
        place = archive.getmembers()[6].offset
    data = bytearray(file.read_bytes())
    data[place : place + 512] = b"x" * 512
    file.write_bytes(data)
    opened = hs.open_data(file)
    assert len(opened) == 6
    assert opened.findings[0].message.startswith(f"t.tar: the archive is damaged: no valid header at byte {place:,}")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.tar", b"", r"a\.tar: empty \(0 bytes\)"),
        ("a.tar", b"no archive" * 100, r"a\.tar: not a tar file .*decompress a compressed one"),
        ("a.tar", b"\0" * 10240, r"a\.tar: the archive is empty"),
        ("a.tar.gz", b"x", r"a\.tar\.gz: a compressed archive .*Decompress it"),
        ("a.tgz", b"x", r"a\.tgz: a compressed archive"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_a_remedy(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        hs.open_data(tmp_path / name)


def test_of_members_of_one_name_the_last_counts(images: dict[str, bytes], tmp_path: Path) -> None:
    first, *_, last = images.values()
    file = write_tar(tmp_path / "t.tar", [*images.items(), ("blue/0.png", last)])
    data = hs.open_data(file)
    assert [(f.kind, f.items) for f in data.findings] == [("repeated-member", ("blue/0.png",))]
    assert read_image(f"{file}::blue/0.png") == last != first


def test_names_are_only_names(images: dict[str, bytes], tmp_path: Path) -> None:
    data = next(iter(images.values()))
    names = [
        "/abs/0.png",
        "./here/1.png",
        "here/2.png",
        "../out/3.png",
        b"caf\xe9/4.png".decode("utf-8", "surrogateescape"),
    ]
    file = write_tar(tmp_path / "t.tar", [(name, data) for name in names])
    opened = hs.open_data(file)
    assert opened.classes == ("abs", "café", "here")
    assert [(f.kind, f.items) for f in opened.findings] == [("member-outside", ("../out/3.png",))]
    assert all(read_image(address) == data for address in opened.files())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["t.tar"]


def test_links_between_members_are_followed(images: dict[str, bytes], tmp_path: Path) -> None:
    file = write_tar(tmp_path / "t.tar", images.items())
    with tarfile.open(file, "a") as archive:
        link = tarfile.TarInfo("blue/9.png")
        link.type, link.linkname = tarfile.LNKTYPE, "blue/0.png"
        archive.addfile(link)
    assert read_image(f"{file}::blue/9.png") == images["blue/0.png"]


def test_a_shard_with_samples_that_lack_something_names_them(images: dict[str, bytes], tmp_path: Path) -> None:
    members = [
        *webdataset_members(images),
        ("only.png", b"x"),
        ("text.cls", b"red"),
        ("bad.png", b"x"),
        ("bad.json", b"{"),
    ]
    data = hs.open_data(write_tar(tmp_path / "t.tar", members))
    (finding,) = data.findings
    assert (finding.kind, len(data)) == ("incomplete-sample", 8)
    assert finding.items == ("only.png: no label", "text: no image", "bad.png: the label in bad.json cannot be read")


def test_labels_may_be_indices_names_or_json_also_several(images: dict[str, bytes], tmp_path: Path) -> None:
    data = next(iter(images.values()))
    texts = [("cls", b"3\n"), ("txt", b"a rose"), ("json", b'{"label": "tulip"}'), ("json", b'{"cls": 3}')]
    members = [(f"s/{i}.{kind}", text) for i, (kind, text) in enumerate(texts)]
    file = write_tar(tmp_path / "t.tar", [*members, *((f"s/{i}.png", data) for i in range(4))])
    assert hs.open_data(file).label_names() == ["3", "3", "a rose", "tulip"]
    several = [("0.png", data), ("0.json", b'{"labels": ["a", "b"]}'), ("1.png", data), ("1.json", b'{"labels": []}')]
    opened = hs.open_data(write_tar(tmp_path / "m.tar", several))
    assert (opened.multi_label, opened.labels.tolist()) == (True, [[1, 1], [0, 0]])


def test_images_without_labels_are_an_error_with_what_is_expected(images: dict[str, bytes], tmp_path: Path) -> None:
    file = write_tar(tmp_path / "t.tar", [(f"{i}.png", data) for i, data in enumerate(images.values())])
    with pytest.raises(DataError, match=r"t\.tar: the images have no label. Expected a folder per class .*\.cls"):
        hs.open_data(file)
