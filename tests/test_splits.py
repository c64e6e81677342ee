"""Law 9: near-identical images never stand on both sides, and adding images moves no old one."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pictures import picture, write_classes
from PIL import Image

from headstart.data.checks import Inspection, inspect
from headstart.data.splits import SplitShares
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
    with pytest.raises(DataError, match="no train"):
        look(tmp_path / "d")


def test_without_val_enough_training_images_give_one_and_test_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headstart.data.splits.LEAST_DRAWN_VAL", 9)
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
        ("val", SplitShares(val=0.2), r"val 0\.2: .*its own split \(train, val\)"),
        ("val", SplitShares(test=0.2), r"test 0\.2: .*its own split \(train, val\)"),
        ("test", SplitShares(test=0.2), r"test 0\.2: .*its own split \(train, test\)"),
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
    picture(0, (40, 60, 200)).save(tmp_path / "d/train/b/as-in-a.png")
    kinds = {f.kind for f in look(tmp_path / "d", shares=SplitShares()).findings}
    assert {"imbalance", "few-images", "two-labels"} <= kinds
