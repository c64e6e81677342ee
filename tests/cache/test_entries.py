"""Entries of the cache: what they say of themselves, and how they are removed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import child_of
from small_stores import HOUR, ROW, age, fill, keys, limit, open_store, rows, simulate_disk, write_plan_file

from headstart.cache import row_store
from headstart.cache.entries import cache_entries, clear_cache, size_text
from headstart.cache.row_store import RowStore
from headstart.errors import CacheError


@pytest.fixture(autouse=True)
def disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    return simulate_disk(monkeypatch)


def age_file(file: Path, hours: float) -> None:
    then = time.time() - hours * HOUR
    os.utime(file, (then, then))


def test_an_entry_says_what_it_is_and_when_it_was_used(tmp_path: Path) -> None:
    folder = fill(tmp_path, "resnet18", hours=3, count=2, kind="features")
    (entry,) = cache_entries(tmp_path)
    assert (entry.kind, entry.name, entry.path) == ("features", folder.name, folder)
    assert (entry.rows, entry.about) == (2, {"architecture": "resnet18"})
    assert entry.bytes == sum(file.stat().st_size for file in folder.iterdir()) > 2 * ROW
    assert time.time() - entry.used == pytest.approx(3 * HOUR, abs=60)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"decoder": 3}, "some"),
        ({"height": 224, "width": 192, "crop_pct": 0.9, "crop_mode": "border"}, "size 224 x 192, border, crop 0.9"),
        (
            {
                "architecture": "vit",
                "layer": None,
                "pixels": {"height": 8, "width": 8, "seed": 5},
                "precision": "float32",
            },
            "vit, size 8 x 8, float32",
        ),
        (
            {"architecture": "vit", "boundary": "blocks.2", "augmentation": {"flip": True, "scale": 0.5}, "seed": 0},
            "vit, boundary blocks.2, augmentation flip True scale 0.5, seed 0",
        ),
    ],
)
def test_the_description_of_an_entry_comes_from_its_metadata(
    tmp_path: Path, about: dict[str, object], words: str
) -> None:
    RowStore("some", about, dtype=np.uint8, root=tmp_path)
    assert [entry.words for entry in cache_entries(tmp_path)] == [words]


def test_a_folder_that_is_no_store_is_neither_listed_nor_removed(tmp_path: Path) -> None:
    """HEADSTART_CACHE may be a folder that holds other things too."""
    own = fill(tmp_path, "a", hours=1)
    others = [tmp_path / "photos" / "x.jpg", tmp_path / "test" / "notes", tmp_path / "test" / ("0" * 24) / "x"]
    others += [
        tmp_path / "test" / f"{'0' * 24}.safetensors",
        tmp_path / "engines" / "mine.safetensors",
        tmp_path / ".trash-x" / "x",
    ]
    others += [tmp_path / "test" / ".trash-x" / "x", tmp_path / "loose"]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    (tmp_path / "test" / ("1" * 24)).symlink_to(own)
    assert [entry.path for entry in cache_entries(tmp_path)] == [own]
    clear_cache(cache_entries(tmp_path))
    assert not own.exists()
    assert all(path.read_text() == "mine" for path in others)


def test_a_store_from_before_there_were_stamps_is_as_old_as_its_last_row(tmp_path: Path) -> None:
    folder = fill(tmp_path, "a", hours=0)
    (folder / "used").unlink()
    then = time.time() - 5 * HOUR
    os.utime(folder / "keys.bin", (then, then))
    assert cache_entries(tmp_path)[0].used == pytest.approx(then)
    assert np.array_equal(open_store(tmp_path).read(keys(0)), rows(0))
    assert time.time() - cache_entries(tmp_path)[0].used < 60


def test_opening_and_reading_and_looking_up_count_as_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path, "a", hours=5)
    opened = open_store(tmp_path)
    assert time.time() - cache_entries(tmp_path)[0].used < 60
    for use in (lambda: opened.read(keys(0)), lambda: opened.append(keys(0), rows(0)), lambda: keys(0)[0] in opened):
        age(folder, 5)
        use()
        assert time.time() - cache_entries(tmp_path)[0].used > HOUR, "noted more than once a minute"
        opened._stamped -= row_store.STAMP_EVERY + 1
        use()
        assert time.time() - cache_entries(tmp_path)[0].used < 60


def test_engine_plans_are_entries_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = write_plan_file(tmp_path / "engines" / f"{'a' * 24}.safetensors")
    age_file(plan, 9)
    (entry,) = cache_entries(tmp_path)
    assert (entry.kind, entry.name, entry.rows, entry.bytes) == ("engines", "a" * 24, 0, plan.stat().st_size)
    assert entry.words == "resnet18"
    assert time.time() - entry.used == pytest.approx(9 * HOUR, abs=60)
    kept = fill(tmp_path, "a", hours=8)
    limit(monkeypatch, 70)
    open_store(tmp_path, "new").require_space(3)
    assert not plan.exists()
    assert kept.exists()
    assert list(plan.parent.iterdir()) == []


def test_clearing_takes_engine_plans_too(tmp_path: Path) -> None:
    plan = write_plan_file(tmp_path / "engines" / f"{'a' * 24}.safetensors")
    clear_cache(cache_entries(tmp_path))
    assert not plan.exists()


def test_a_kill_in_the_middle_of_a_removal_leaves_no_half_entry(tmp_path: Path) -> None:
    folder = fill(tmp_path, "a", hours=9, count=3)
    other = fill(tmp_path, "b", hours=8)
    script = (
        "import os, signal, sys; from pathlib import Path; from headstart.cache import entries\n"
        "def half(folder, **_):\n"
        "    (folder / 'keys.bin').unlink(); print(folder, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
        "entries.shutil.rmtree = half\n"
        "entries.clear_cache(reversed(entries.cache_entries(Path(sys.argv[1]))))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    trash = Path(done.stdout.strip())
    assert (trash / "rows.bin").exists(), "the test is not in the middle"
    assert len(open_store(tmp_path, "a")) == 0
    assert [entry.path for entry in cache_entries(tmp_path)] == [folder, other]
    assert not trash.exists()
    shutil.copytree(other, trash)
    open_store(tmp_path, "a").require_space(1)
    assert not trash.exists()


def test_a_store_whose_folder_was_removed_says_so(tmp_path: Path) -> None:
    for remove in (lambda f: clear_cache(cache_entries(tmp_path)), shutil.rmtree):
        opened = open_store(tmp_path)
        opened.append(keys(1), rows(1))
        remove(opened.folder)
        for use in (
            lambda o=opened: o.read(keys(1)),
            lambda o=opened: o.append(keys(2), rows(2)),
            lambda o=opened: o.require_space(1),
        ):
            with pytest.raises(CacheError, match=r"was removed while it was in use.*Run the same command again"):
                use()
            assert not opened.folder.exists()


def test_a_store_does_not_use_a_new_folder_of_the_same_name(tmp_path: Path) -> None:
    stale = open_store(tmp_path)
    stale.append(keys(1, 2), rows(1, 2))
    assert clear_cache(cache_entries(tmp_path)) > 2 * ROW
    fresh = open_store(tmp_path)
    fresh.append(keys(2, 1, 3), rows(2, 1, 3))
    for use in (lambda: stale.read(keys(1)), lambda: stale.append(keys(4), rows(4)), lambda: stale.require_space(1)):
        with pytest.raises(CacheError, match="was removed"):
            use()
    assert np.array_equal(open_store(tmp_path).read(keys(1, 2, 3)), rows(1, 2, 3))
    assert open_store(tmp_path).missing(keys(4)) == [0]


@pytest.mark.slow
def test_clearing_beside_a_writer_never_mixes_rows_up(tmp_path: Path) -> None:
    """One process appends and reads back, and reopens the store whenever this process has cleared the cache."""
    script = (
        "root, lost = Path(sys.argv[1]), 0\n"
        "s = open_store(root)\n"
        "for n in range(10**6):\n"
        "    try:\n"
        "        s.append(keys(n % 250), rows(n % 250)); assert (s.read(keys(n % 250)) == n % 250).all(), n\n"
        "        time.sleep(0.005)\n"
        "    except CacheError:\n"
        "        s, lost = open_store(root), lost + 1; print(lost, flush=True)\n"
    )
    command = child_of(__file__, script, tmp_path)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = []
    for _ in range(20):
        while process.poll() is None and not any(entry.rows for entry in cache_entries(tmp_path)):
            time.sleep(0.001)
        clear_cache(cache_entries(tmp_path))
        told.append(process.stdout.readline().strip())
    process.kill()
    assert told == [str(lost) for lost in range(1, 21)], process.communicate()[1]
    process.communicate()
    left = open_store(tmp_path)
    held = [n for n in range(250) if keys(n)[0] in left]
    assert np.array_equal(left.read(keys(*held)), rows(*held) if held else np.empty((0, ROW)))


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0.0 kB"), (999, "1.0 kB"), (1e6, "1.0 MB"), (1.26e9, "1.3 GB"), (2e12, "2,000.0 GB")]
)
def test_sizes_have_decimal_units(size: float, text: str) -> None:
    assert size_text(size) == text
