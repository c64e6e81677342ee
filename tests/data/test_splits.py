"""Law 9: near-identical images never stand on both sides, and adding images moves no old one."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from random_images import random_image, write_classes

from headstart.data import splits as splits_module
from headstart.data.dataset import Dataset
from headstart.data.duplicates import DuplicatePair
from headstart.data.inspection import Inspection, inspect
from headstart.data.scan import FACTS, Scan
from headstart.data.splits import SplitShares, check_shares, make_split, split_counts
from headstart.errors import DataError, OptionError


def look(source: Path, *, seed: int = 0, shares: SplitShares | None = None) -> Inspection:
    shares = SplitShares(0.25, 0.2) if shares is None else shares
    return inspect(source, seed=seed, shares=shares, cache=source.parent / "cache")


def by_path(inspection: Inspection) -> dict[str, str]:
    return dict(zip(inspection.dataset.paths, inspection.split.assigned, strict=True))


def assert_no_twins_apart(inspection: Inspection) -> None:
    for pair in inspection.duplicates:
        sides = {inspection.split.assigned[pair.first], inspection.split.assigned[pair.second]} - {""}
        assert len(sides) <= 1


@pytest.mark.slow
def test_a_drawn_split_has_the_shares_asked_for_in_every_class(tmp_path: Path) -> None:
    counts = look(write_classes(tmp_path / "d", {"a": 300, "b": 300})).counts()
    for label in ("a", "b"):
        assert abs(counts["val"][label] - 75) < 30
        assert abs(counts["test"][label] - 60) < 30


def test_adding_images_moves_no_old_one_whatever_is_added(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "d", {"a": 60, "b": 60})
    old = by_path(look(folder))
    rng = np.random.default_rng(0)
    for number, path in enumerate(sorted(folder.glob("*/*.png"))):
        if rng.random() < 0.5:  # near-identical to an old one, exact copies, and wholly new ones
            Image.open(path).resize((44, 36)).save(path.with_name(f"near{number}.png"))
        if rng.random() < 0.2:
            shutil.copy(path, path.with_name(f"copy{number}.png"))
    write_classes(folder, {"b": 20, "c": 30}, first_seed=5000)
    inspection = look(folder)
    new = by_path(inspection)
    moved = [p for p in old if p.startswith("a") and new[p] not in (old[p], "")]
    assert not moved
    assert_no_twins_apart(inspection)
    assert inspection.split.left_out
    assert all("near-identical to" in why for why in inspection.split.left_out.values())
    train_before = {p for p, split in old.items() if p.startswith("a") and split == "train"}
    assert train_before == {p for p in old if p.startswith("a") and new[p] == "train"}


def test_the_draw_depends_on_content_and_seed_alone(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "d", {"a": 40, "b": 40})
    first = by_path(look(folder))
    for path in list(folder.glob("*/*.png")):
        path.rename(path.with_name(f"renamed-{path.name}"))
    renamed = {path.replace("renamed-", ""): split for path, split in by_path(look(folder)).items()}
    assert renamed == first
    assert by_path(look(folder, seed=1)) != by_path(look(folder))


def test_a_group_stays_on_one_side(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "d", {"a": 60, "b": 60})
    rows = [f"{p.relative_to(tmp_path)},{p.parent.name},g{int(p.stem) // 6}" for p in sorted(folder.glob("*/*.png"))]
    (tmp_path / "t.csv").write_text("path,label,group\n" + "\n".join(rows))
    inspection = look(tmp_path / "t.csv")
    sides: dict[str, set[str]] = {}
    for group, split in zip(inspection.dataset.groups or (), inspection.split.assigned, strict=True):
        sides.setdefault(group, set()).add(split)
    assert len(sides) == 10
    assert all(len(s) == 1 for s in sides.values())
    assert len(Counter(s for side in sides.values() for s in side)) >= 2


@pytest.mark.slow
def test_copies_in_other_groups_are_kept_apart_from_near_copies_too(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "d", {"a": 30, "b": 30})
    rows = []
    for number, path in enumerate(sorted(folder.glob("*/*.png"))):
        for copy in range(4):
            shutil.copy(path, tmp_path / f"{number}-{copy}.png")
            rows.append(f"{number}-{copy}.png,{path.parent.name},g{number}-{copy}")
        Image.open(path).resize((44, 36)).save(tmp_path / f"{number}-near.png")
        rows.append(f"{number}-near.png,{path.parent.name},n{number}")
    (tmp_path / "t.csv").write_text("path,label,group\n" + "\n".join(rows))
    sides: dict[str, set[str]] = {}
    for path, split in by_path(look(tmp_path / "t.csv")).items():
        sides.setdefault(path.split("-")[0], set()).add(split)
    assert all(len(side - {""}) == 1 for side in sides.values())


def test_given_splits_are_kept_and_their_leaks_named(tmp_path: Path) -> None:
    write_classes(tmp_path / "d" / "train", {"a": 9, "b": 9})
    write_classes(tmp_path / "d" / "val", {"a": 4, "b": 4}, first_seed=100)
    shutil.copy(tmp_path / "d/train/a/1.png", tmp_path / "d/val/a/leak.png")
    inspection = look(tmp_path / "d", shares=SplitShares())
    assert by_path(inspection)["val/a/leak.png"] == "val"
    assert [f.items for f in inspection.findings if f.kind == "leak"] == [("train/a/1.png = val/a/leak.png",)]


def test_a_train_split_alone_is_drawn_from_and_no_train_split_is_an_error(tmp_path: Path) -> None:
    write_classes(tmp_path / "d" / "train", {"a": 40, "b": 40})
    assert set(look(tmp_path / "d").split.names) == {"train", "val", "test"}
    (tmp_path / "d" / "train").rename(tmp_path / "d" / "val")
    with pytest.raises(DataError, match="no split named train"):
        look(tmp_path / "d")


def test_without_val_enough_training_images_give_one_and_test_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headstart.data.splits.MIN_DRAWN_VAL", 9)
    write_classes(tmp_path / "d" / "train", {"a": 30, "b": 30})
    write_classes(tmp_path / "d" / "test", {"a": 5, "b": 5}, first_seed=500)
    inspection = look(tmp_path / "d", shares=SplitShares())
    split, first = inspection.split, by_path(inspection)
    assert set(split.names) == {"train", "val", "test"}
    assert 2 <= split.sizes["val"] <= 18
    assert [p for p, name in first.items() if p.startswith("test/")] == [p for p, n in first.items() if n == "test"]
    assert "val drawn from train" in split.origin
    assert first != by_path(look(tmp_path / "d", shares=SplitShares(), seed=1))
    write_classes(tmp_path / "d" / "train", {"c": 20}, first_seed=900)  # law 9: what is added moves no old image
    later = by_path(look(tmp_path / "d", shares=SplitShares()))
    assert all(later[path] in (name, "") for path, name in first.items() if name)


def test_from_few_training_images_a_val_is_drawn_only_where_a_share_is_given(tmp_path: Path) -> None:
    write_classes(tmp_path / "d" / "train", {"a": 30, "b": 30})
    write_classes(tmp_path / "d" / "test", {"a": 5, "b": 5}, first_seed=500)
    plain = look(tmp_path / "d", shares=SplitShares()).split
    assert plain.names == ("train", "test")
    assert plain.origin == "as given with the data"
    asked = look(tmp_path / "d", shares=SplitShares(0.25)).split
    assert asked.names == ("train", "val", "test")
    assert asked.val_drawn


def test_a_val_drawn_from_train_holds_no_near_copy_of_it_and_no_group_of_it(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "d", {"a": 40, "b": 40})
    rows = ["path,label,split,group"]
    for number, path in enumerate(sorted(folder.glob("*/*.png"))):
        Image.open(path).resize((44, 36)).save(path.with_name(f"near{path.stem}.png"))
        split = "test" if number % 8 == 0 else "train"
        rows += [f"{p.relative_to(tmp_path)},{p.parent.name},{split},g{number // 2}" for p in (path,)]
        rows += [f"{path.with_name(f'near{path.stem}.png').relative_to(tmp_path)},{path.parent.name},{split},n{number}"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    inspection = look(tmp_path / "t.csv", shares=SplitShares(0.3))
    split = inspection.split
    for pair in inspection.duplicates:
        assert {split.assigned[pair.first], split.assigned[pair.second]} != {"train", "val"}
    assert split.left_out
    assert all("drawn for val, but near-identical to" in why for why in split.left_out.values())
    sides: dict[str, set[str]] = {}
    for group, name in zip(inspection.dataset.groups or (), split.assigned, strict=True):
        sides.setdefault(group, set()).add(name)
    assert all({"train", "val"} - side for side in sides.values())


@pytest.mark.parametrize(
    ("given", "shares", "named"),
    [
        ("val", SplitShares(val=0.2), r"val 0\.2: .*the splits \(train, val\)"),
        ("val", SplitShares(test=0.2), r"test 0\.2: .*the splits \(train, val\)"),
        ("test", SplitShares(test=0.2), r"test 0\.2: .*the splits \(train, test\)"),
    ],
)
def test_a_share_of_what_the_data_come_with_is_refused(
    tmp_path: Path, given: str, shares: SplitShares, named: str
) -> None:
    for name in ("train", given):
        write_classes(tmp_path / "d" / name, {"a": 4, "b": 4}, first_seed=100 * len(name))
    with pytest.raises(OptionError, match=named):
        look(tmp_path / "d", shares=shares)


def test_unreadable_images_are_in_no_split(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "d", {"a": 10, "b": 10})
    (folder / "a" / "3.png").write_bytes(b"")
    inspection = look(folder)
    assert by_path(inspection)["a/3.png"] == ""
    assert inspection.findings[0].items == ("a/3.png: empty file (0 bytes)",)


@pytest.mark.parametrize(("val", "test"), [(0, 0.1), (1, 0), (0.6, 0.5), (0.2, -0.1)])
def test_impossible_shares_are_refused(val: float, test: float) -> None:
    with pytest.raises(OptionError, match="shares"):
        SplitShares(val, test)


def test_imbalance_small_classes_and_two_labels_are_found(tmp_path: Path) -> None:
    write_classes(tmp_path / "d" / "train", {"a": 40, "b": 5})
    write_classes(tmp_path / "d" / "val", {"a": 4, "b": 4}, first_seed=100)
    random_image(0, (40, 60, 200)).save(tmp_path / "d/train/b/as-in-a.png")
    kinds = {f.kind for f in look(tmp_path / "d", shares=SplitShares()).findings}
    assert {"class-imbalance", "few-images", "conflicting-labels"} <= kinds


# on data sets and scans of numbers, without any file


def made(
    count: int = 400,
    *,
    splits: tuple[str, ...] | None = None,
    groups: tuple[str, ...] | None = None,
    keys: list[bytes] | None = None,
    faults: dict[int, str] | None = None,
) -> tuple[Dataset, Scan]:
    paths = tuple(f"{i}.png" for i in range(count))
    labels = np.arange(count) % 2
    dataset = Dataset(Path("data"), Path("/data"), paths, labels, ("a", "b"), splits=splits, groups=groups)
    keys = keys or [hashlib.sha256(str(i).encode()).digest()[:16] for i in range(count)]
    return dataset, Scan(keys, faults or {}, np.zeros(count, FACTS))


def place_of(name: bytes, seed: int = 0) -> float:
    """By a hash of the seed and the content alone (law 9). It must never change: old images would move."""
    digest = hashlib.blake2b(name, digest_size=8, salt=seed.to_bytes(8, "big", signed=True)).digest()
    return int.from_bytes(digest, "big") / 2**64


@pytest.mark.parametrize("seed", [0, 1, -7])
def test_each_image_is_drawn_by_its_content_hash(seed: int) -> None:
    dataset, scanned = made()
    split = make_split(dataset, scanned, [], seed=seed)
    expected = [place_of(b"image:" + key, seed) for key in scanned.keys]
    assert list(split.assigned) == ["test" if p < 0.15 else "val" if p < 0.3 else "train" for p in expected]
    assert (split.given, split.val_drawn, split.left_out, split.leaks) == (False, False, {}, ())
    assert split.origin == "drawn by content"
    assert split.names == ("train", "val", "test")
    assert split.sizes == {name: len(split.positions(name)) for name in split.names}
    assert sum(split.sizes.values()) == 400
    assert split.positions("val") == [i for i, name in enumerate(split.assigned) if name == "val"]
    other = make_split(dataset, scanned, [], seed=seed, shares=SplitShares(0.4, 0.0))
    assert list(other.assigned) == ["val" if p < 0.4 else "train" for p in expected]
    assert other.names == ("train", "val")


def test_a_group_is_drawn_by_its_name_and_images_without_one_by_their_content() -> None:
    groups = tuple(f"g{i // 8}" if i % 4 else "" for i in range(400))
    dataset, scanned = made(groups=groups)
    split = make_split(dataset, scanned, [])
    names = [b"group:" + g.encode() if g else b"image:" + k for g, k in zip(groups, scanned.keys, strict=True)]
    assert [p < 0.3 for p in map(place_of, names)] == [name != "train" for name in split.assigned]
    odd, _ = made(groups=("\udce9", *groups[1:]))
    assert make_split(odd, scanned, []).assigned[1:] == split.assigned[1:]


def test_a_given_split_stays_and_val_is_drawn_from_train_where_it_is_large_enough() -> None:
    for count, drawn in ((840, True), (660, False)):
        splits = tuple("test" if i % 5 == 0 else "train" for i in range(count))
        dataset, scanned = made(count, splits=splits)
        split = make_split(dataset, scanned, [])
        assert (split.given, split.val_drawn) == (True, drawn), count
        places = [place_of(b"image:" + key) for key in scanned.keys]
        expected = ["val" if drawn and s == "train" and p < 0.15 else s for s, p in zip(splits, places, strict=True)]
        assert list(split.assigned) == expected
        assert split.origin == "as given with the data" + (", val drawn from train by content" if drawn else "")
    share = make_split(dataset, scanned, [], shares=SplitShares(val=0.2))
    assert share.val_drawn
    assert [n for n in share.assigned if n == "val"]
    assert {share.assigned[i] for i in range(0, 660, 5)} == {"test"}


def test_as_many_expected_images_as_are_asked_for_are_enough_to_draw_val() -> None:
    given = ("train",) * 200 + ("test",) * 10
    dataset, scanned = made(210, splits=given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits_module, "MIN_DRAWN_VAL", 30)
        assert make_split(dataset, scanned, []).val_drawn  # 0.15 of 200
        less, scan = made(209, splits=given[1:])
        assert not make_split(less, scan, []).val_drawn
    assert (splits_module.DEFAULT_SHARE, splits_module.MIN_DRAWN_VAL) == (0.15, 100)


def test_shares_have_defaults_and_bounds() -> None:
    assert (SplitShares().val_share, SplitShares().test_share) == (0.15, 0.15)
    assert (SplitShares(0.3, 0.0).val_share, SplitShares(0.3, 0.0).test_share) == (0.3, 0.0)
    assert SplitShares(0.7).test_share == 0.15
    for val, test in ((0.0, 0.1), (1.0, 0.0), (0.5, 0.5), (0.1, -0.1), (0.1, 1.0), (0.85, None), (None, 0.85)):
        with pytest.raises(OptionError, match="expected val > 0 and a sum below 1"):
            SplitShares(val, test)


def test_unreadable_images_are_nowhere_and_train_alone_is_drawn_from() -> None:
    dataset, scanned = made(splits=("train",) * 400, faults={3: "cut off", 5: "empty"})
    split = make_split(dataset, scanned, [])
    whole = make_split(*made(), [])
    assert not split.given
    assert (split.assigned[3], split.assigned[5]) == ("", "")
    assert [n for i, n in enumerate(split.assigned) if i not in (3, 5)] == [
        n for i, n in enumerate(whole.assigned) if i not in (3, 5)
    ]
    given, scan = made(4, splits=("train", "val", "test", "train"), faults={1: "empty"})
    assert make_split(given, scan, []).assigned == ("train", "", "test", "train")
    without, scan = made(3, splits=("val", "test", "val"))
    with pytest.raises(DataError, match="found the splits test, val, but no split named train"):
        make_split(without, scan, [])
    with pytest.raises(DataError, match="no split named train"):
        make_split(without, scan, [], shares=SplitShares(val=0.2, test=0.2))


@pytest.mark.parametrize(
    ("given", "shares", "refused"),
    [
        (("train", "val"), SplitShares(val=0.2), True),
        (("train", "val"), SplitShares(test=0.2), True),
        (("train", "test"), SplitShares(test=0.2), True),
        (("train", "test"), SplitShares(val=0.2), False),
        (("train", "train"), SplitShares(0.2, 0.2), False),
        (None, SplitShares(0.2, 0.2), False),
        (("train", "val"), SplitShares(), False),
    ],
)
def test_a_share_is_for_what_the_data_come_without(
    given: tuple[str, ...] | None, shares: SplitShares, refused: bool
) -> None:
    dataset, _ = made(2, splits=given)
    if refused:
        with pytest.raises(OptionError, match=r"already has the splits \(train, "):
            check_shares(dataset, shares)
    else:
        check_shares(dataset, shares)


def test_of_near_identical_images_the_one_in_the_later_split_is_left_out() -> None:
    dataset, scanned = made()
    drawn = make_split(dataset, scanned, []).assigned
    train, val, test = ([i for i, name in enumerate(drawn) if name == own] for own in ("train", "val", "test"))
    near = [
        DuplicatePair(*sorted(pair), exact=False)
        for pair in ((train[3], val[0]), (train[0], test[0]), (val[1], test[1]), (val[2], val[3]), (val[0], test[2]))
    ]
    split = make_split(dataset, scanned, near)
    expected = list(drawn)
    reasons = {}
    for position, name, twin, where in (
        (val[0], "val", train[3], "train"),
        (test[0], "test", train[0], "train"),
        (test[1], "test", val[1], "val"),
    ):
        expected[position] = ""
        reasons[position] = f"drawn for {name}, but near-identical to {twin}.png in {where}"
    assert list(split.assigned) == expected  # val[0] is itself left out and keeps test[2] from nothing
    assert split.left_out == reasons
    many = [DuplicatePair(min(i, test[4]), max(i, test[4]), exact=False) for i in (train[9], val[5], train[6])]
    assert make_split(dataset, scanned, many).left_out[test[4]].endswith(f"to {min(train[6], train[9])}.png in train")
    assert dict(split.sizes) == {n: expected.count(n) for n in ("train", "val", "test")}


def test_copies_in_two_groups_are_twins_though_they_are_one_content() -> None:
    keys = [hashlib.sha256(str(i // 2).encode()).digest()[:16] for i in range(400)]
    groups = tuple(f"g{i}" for i in range(400))
    dataset, scanned = made(groups=groups, keys=keys)
    pairs = [DuplicatePair(i, i + 1, exact=True) for i in range(0, 400, 2)]
    drawn, split = make_split(dataset, scanned, []), make_split(dataset, scanned, pairs)
    apart = [i for i in range(0, 400, 2) if drawn.assigned[i] != drawn.assigned[i + 1]]
    assert apart
    assert set(split.left_out) == {
        max((i, i + 1), key=lambda j: ("train", "val", "test").index(drawn.assigned[j])) for i in apart
    }


def test_leaks_are_between_given_splits_and_val_drawn_from_train_has_none_with_train() -> None:
    splits = tuple("test" if i % 5 == 0 else "train" for i in range(840))
    dataset, scanned = made(840, splits=splits, faults={11: "empty"})
    drawn = make_split(dataset, scanned, []).assigned
    train, val = ([i for i, name in enumerate(drawn) if name == own] for own in ("train", "val"))
    pairs = [
        DuplicatePair(0, train[1], exact=True),  # test and train
        DuplicatePair(0, 5, exact=True),  # both test
        DuplicatePair(10, 11, exact=True),  # of which one cannot be read
        DuplicatePair(*sorted((train[4], val[0])), exact=False),
        DuplicatePair(*sorted((15, val[1])), exact=False),
    ]
    split = make_split(dataset, scanned, pairs)
    assert set(split.left_out) == {val[0]}
    assert split.assigned[val[0]] == ""
    assert split.leaks == (pairs[0], pairs[4])


def test_images_of_each_class_and_split_are_counted() -> None:
    dataset, scanned = made(6, splits=("train", "train", "test", "train", "test", "train"), faults={5: "empty"})
    split = make_split(dataset, scanned, [])
    assert split_counts(dataset, split) == {"train": {"a": 1, "b": 2}, "test": {"a": 2, "b": 0}}
    several = replace(dataset, labels=np.ones((6, 2), np.int64))
    assert split_counts(several, split) == {"train": {"a": 3, "b": 3}, "test": {"a": 2, "b": 2}}


def test_the_first_rule_of_the_registry_that_applies_makes_the_split(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, scanned = made(6)

    def all_train(source: splits_module.SplitInput) -> splits_module.Split | None:
        assert len(source.draws) == len(source.dataset) == 6
        return splits_module.Split(("train",) * 6, given=False, left_out={}, leaks=())

    monkeypatch.setattr(splits_module, "RULES", (lambda source: None, all_train, *splits_module.RULES))
    assert make_split(dataset, scanned, ()).sizes == {"train": 6}
