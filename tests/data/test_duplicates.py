from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from random_images import random_image

from headstart.data import duplicates
from headstart.data.duplicates import DuplicatePair, connected_parts, find_duplicates
from headstart.data.scan import FACTS, Scan, scan


@pytest.mark.slow
def test_copies_and_near_copies_are_found_and_nothing_else(tmp_path: Path) -> None:
    paths = []
    for i in range(40):
        paths.append(tmp_path / f"{i}.png")
        random_image(i, size=(300, 260)).save(paths[-1])
    shutil.copy(paths[3], tmp_path / "copy.png")
    shutil.copy(paths[3], tmp_path / "copy2.png")
    original = Image.open(paths[7])
    original.resize((170, 150)).save(tmp_path / "smaller.png")
    original.save(tmp_path / "worse.jpg", quality=30)
    original.crop((5, 5, 298, 255)).save(tmp_path / "cropped.png")
    paths += [tmp_path / name for name in ("copy.png", "copy2.png", "smaller.png", "worse.jpg", "cropped.png")]
    pairs = find_duplicates(scan([str(p) for p in paths], cache=tmp_path / "cache")).pairs
    assert [(p.first, p.second) for p in pairs if p.exact] == [(3, 40), (3, 41)]
    near = {(p.first, p.second) for p in pairs if not p.exact}
    assert {(7, 42), (7, 43), (7, 44)} <= near
    assert all(a in (7, 42, 43, 44) and b in (42, 43, 44) for a, b in near)


def test_where_all_images_look_alike_they_are_not_taken_for_one(tmp_path: Path) -> None:
    """Two marks on a white sheet, as under a fixed camera: similar hashes, but different images."""
    paths = []
    for i in range(60):
        sheet = Image.new("L", (160, 160), 240)
        sheet.paste(20, (30 + 5 * (i % 8), 40, 70 + 5 * (i % 8), 80))
        sheet.paste(90, (60, 60 + 6 * (i // 8), 110, 90 + 6 * (i // 8)))
        paths.append(tmp_path / f"{i}.png")
        sheet.save(paths[-1])
    shutil.copy(paths[0], tmp_path / "same.png")
    pairs = find_duplicates(scan([*map(str, paths), str(tmp_path / "same.png")], cache=tmp_path / "cache")).pairs
    assert [(p.first, p.second) for p in pairs if p.exact] == [(0, 60)]
    assert len(pairs) < 20


def test_two_images_alone_can_be_near_identical(tmp_path: Path) -> None:
    random_image(1, size=(300, 300)).save(tmp_path / "a.png")
    random_image(1, size=(300, 300)).resize((200, 200)).save(tmp_path / "b.png")
    paths = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert len(find_duplicates(scan(paths, cache=tmp_path / "cache")).pairs) == 1


@pytest.mark.exhaustive
def test_images_that_lost_a_margin_are_found_and_strangers_are_not(tmp_path: Path) -> None:
    paths = []
    for i in range(60):
        paths.append(tmp_path / f"{i}.png")
        detailed(i).save(paths[-1])
    cut = {"each": (9, 8, 291, 252), "two": (9, 8, 300, 260), "end": (0, 0, 291, 260)}
    for number, (name, box) in enumerate(cut.items()):
        for i in range(number, 30, 3):
            paths.append(tmp_path / f"{name}{i}.jpg")
            detailed(i).crop(box).resize((240, 210)).save(paths[-1], quality=85)
    names = [path.stem for path in paths]
    pairs = find_duplicates(scan([str(p) for p in paths], cache=tmp_path / "cache")).pairs
    found = {(names[p.first], names[p.second]) for p in pairs}
    planted = {(str(i), f"{name}{i}") for number, name in enumerate(cut) for i in range(number, 30, 3)}
    assert len(found & planted) >= 28
    assert not found - planted


def detailed(seed: int) -> Image.Image:
    """Coarse and fine patches, as photographs have both."""
    fine = random_image(seed + 1000, size=(300, 260)).resize((30, 26)).resize((300, 260), Image.Resampling.NEAREST)
    return Image.blend(random_image(seed, size=(300, 260)), fine, 0.35)


def test_groups_and_near_copies_make_parts() -> None:
    pairs = [DuplicatePair(1, 7, False), DuplicatePair(2, 3, True)]
    parts = connected_parts([7, 1, 5, 4, 3], ["a", "a", "", "", "b", "b", "", ""], pairs).tolist()
    assert parts[0] == parts[1]
    assert len(set(parts)) == 3
    assert len(set(connected_parts([0, 1, 2, 3], ["a", "b", "a", "b"], []).tolist())) == 2
    assert len(set(connected_parts([4, 5], ["", "", "", "", "b", "b"], []).tolist())) == 1
    assert len(set(connected_parts([0, 1, 2], None, []).tolist())) == 3


def scanned(hashes: np.ndarray, thumbs: np.ndarray | None = None) -> Scan:
    """A scan of images with these hashes, and with equal or given thumbnails."""
    facts = np.zeros(len(hashes), FACTS)
    facts["phash"] = hashes
    if thumbs is not None:
        facts["thumb"] = thumbs
    return Scan([str(place).encode() for place in range(len(hashes))], {}, facts)


def test_the_search_by_bands_finds_the_same_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 300, np.uint64)
    thumbs = rng.integers(0, 256, (300, 16, 16, 3), np.uint8)
    for place in range(0, 200, 2):
        hashes[place + 1] = hashes[place] ^ np.uint64((1 << (place % 17)) - 1)  # 0 to 16 bits
        thumbs[place + 1] = thumbs[place]
    found = find_duplicates(scanned(hashes, thumbs))
    assert len(found.pairs) == sum(place % 17 <= 14 for place in range(0, 200, 2))
    monkeypatch.setattr(duplicates, "SEARCHED_BY_BANDS", 0)
    assert find_duplicates(scanned(hashes, thumbs)) == found
    assert (found.num_images, found.most_bits, found.findings()) == (300, 14, [])


def test_a_search_that_is_cut_short_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = np.random.default_rng(0).integers(0, 1 << 14, 300, np.uint64)
    monkeypatch.setattr(duplicates, "MOST_CANDIDATES", 3000)
    found = find_duplicates(scanned(hashes))
    assert 0 < found.most_bits < 14
    (finding,) = found.findings()
    assert (finding.kind, finding.severity) == ("duplicate-search", "warning")
    assert f"at most {found.most_bits} of 64 bits, not 14" in finding.message
    assert all((int(hashes[p.first]) ^ int(hashes[p.second])).bit_count() <= found.most_bits for p in found.pairs)
    same = find_duplicates(scanned(np.zeros(300, np.uint64)))
    assert (same.pairs, same.most_bits) == ((), -1)
    assert "only identical files were looked for" in same.findings()[0].message


def test_the_number_of_images_of_a_large_search_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = np.random.default_rng(0).integers(0, 2**63, 300, np.uint64)
    monkeypatch.setattr(duplicates, "REPORTED_FROM", 300)
    (finding,) = find_duplicates(scanned(hashes)).findings()
    assert finding.severity == "note"
    assert "among all 300 different images" in finding.message
