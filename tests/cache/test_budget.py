"""The size limit of the cache: what goes first, and what stays."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from filelock import FileLock
from small_stores import ROW, age, fill, keys, limit, names, open_store, rows, simulate_disk

from headstart.cache import budget, entries
from headstart.cache.budget import cache_limit
from headstart.cache.entries import CacheEntry, cache_entries, clear_cache
from headstart.errors import CacheError


@pytest.fixture(autouse=True)
def disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    return simulate_disk(monkeypatch)


@pytest.mark.parametrize(("value", "expected"), [("20", 20e9), (" 0.5 ", 5e8), ("", 50e9), ("1e3", 1e12)])
def test_the_limit_is_in_gigabytes(value: str, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE_LIMIT", value)
    assert cache_limit() == expected


@pytest.mark.parametrize("value", ["20GB", "0", "-1", "nan", "inf", "1e300", "much"])
def test_a_bad_limit_is_a_named_error(tmp_path: Path, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE_LIMIT", value)
    with pytest.raises(CacheError, match=f"HEADSTART_CACHE_LIMIT is '{value}': expected .* number above 0 such as 20"):
        open_store(tmp_path).require_space(1)


def test_the_default_limit_is_50_gigabytes(tmp_path: Path) -> None:
    opened = open_store(tmp_path)
    opened.require_space(int(49e9) // ROW)
    with pytest.raises(CacheError, match=r"needs 51\.\d GB more. Its limit is 50\.0 GB and it holds 0\.\d kB"):
        opened.require_space(int(51e9) // ROW)


def test_what_was_used_longest_ago_goes_first_and_no_more_than_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, hours in (("third", 2.0), ("first", 9.0), ("second", 5.0), ("fourth", 1.0)):
        fill(tmp_path, name, hours=hours, count=3)
    limit(monkeypatch, 150)
    opened = open_store(tmp_path, "new")
    opened.require_space(2)
    assert names(tmp_path) == ["new", "fourth", "third", "second", "first"]
    opened.require_space(5)
    assert names(tmp_path) == ["new", "fourth", "third", "second"]
    opened.require_space(11)
    assert names(tmp_path) == ["new", "fourth"]
    assert np.array_equal(open_store(tmp_path, "fourth").read(keys(0, 1, 2)), rows(0, 1, 2))


def test_what_this_process_has_open_stays_and_goes_once_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "old", hours=0, count=3)
    other = open_store(tmp_path, "old")
    age(other.folder, 9)
    limit(monkeypatch, 60)
    monkeypatch.chdir(tmp_path.parent)
    new = open_store(Path(tmp_path.name), "new")  # the same folder by another name
    with pytest.raises(CacheError, match="in use"):
        new.require_space(5)
    assert np.array_equal(other.read(keys(0)), rows(0))
    age(other.folder, 9)
    del other
    new.require_space(5)
    assert names(tmp_path) == ["new"]


def test_a_store_never_removes_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = open_store(tmp_path, "own")
    own.append(keys(0, 1, 2), rows(0, 1, 2))
    age(own.folder, 9)
    limit(monkeypatch, 40)
    with pytest.raises(CacheError, match=r"needs 20\.0 kB more\. Its limit is 40\.0 kB and it holds 30"):
        own.require_space(2)
    assert np.array_equal(own.read(keys(2)), rows(2))


def test_what_another_process_uses_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine minutes ago is in use, eleven is not."""
    folder = fill(tmp_path, "theirs", hours=9 / 60, count=3)
    limit(monkeypatch, 60)
    new = open_store(tmp_path, "new")
    with pytest.raises(CacheError, match=r"30\.\d kB are in use or were used within the last 10 minutes"):
        new.require_space(5)
    assert folder.exists()
    age(folder, 11 / 60)
    new.require_space(5)
    assert not folder.exists()


def test_what_is_used_between_the_look_and_the_removal_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path, "theirs", hours=9, count=3)
    look = budget.cache_entries

    def look_and_then_another_opens_it(root: Path) -> list[CacheEntry]:
        found = look(root)
        os.utime(folder / "used")
        return found

    monkeypatch.setattr(budget, "cache_entries", look_and_then_another_opens_it)
    limit(monkeypatch, 60)
    with pytest.raises(CacheError):
        open_store(tmp_path, "new").require_space(5)
    assert folder.exists()


def test_what_is_being_written_to_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path, "theirs", hours=9, count=3)
    limit(monkeypatch, 60)
    monkeypatch.setattr(entries, "CLEAR_WAITS", 0.1)
    with FileLock(folder / "lock"):
        with pytest.raises(CacheError, match="kB more"):
            open_store(tmp_path, "new").require_space(5)
        with pytest.raises(CacheError, match="1 cache entries cannot be removed"):
            clear_cache(cache_entries(tmp_path))
    assert names(tmp_path) == ["theirs"], "the other entry was to be removed"


def test_nothing_is_removed_where_that_would_not_be_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "old", hours=9, count=3)
    limit(monkeypatch, 60)
    with pytest.raises(CacheError):
        open_store(tmp_path, "new").require_space(7)
    assert names(tmp_path) == ["new", "old"]


def test_a_full_disk_makes_the_oldest_go(tmp_path: Path, disk: dict[str, float]) -> None:
    fill(tmp_path, "old", hours=9, count=3)
    fill(tmp_path, "newer", hours=8, count=3)
    new = open_store(tmp_path, "new")
    disk |= {"total": 100_000, "free": 25_000}
    new.require_space(1)
    assert names(tmp_path) == ["new", "newer", "old"]
    new.require_space(3)
    assert names(tmp_path) == ["new", "newer"]
    with pytest.raises(CacheError, match=r"holds 30\.\d kB.* 25\.0 kB are free on the disk.*headstart cache --clear"):
        new.require_space(6)
    assert names(tmp_path) == ["new", "newer"]


@pytest.mark.parametrize(("total", "reserve"), [(100e9, 5e9), (1000e9, 10e9)])
def test_some_of_the_disk_is_left_free_where_something_can_go_but_nothing_fails_for_it(
    tmp_path: Path, disk: dict[str, float], total: float, reserve: float
) -> None:
    new = open_store(tmp_path, "new")
    for beside, left in ((1_000, ["new", "old"]), (-1_000, ["new"])):
        fill(tmp_path, "old", hours=9)
        disk |= {"total": total, "free": reserve + 2 * (ROW + 16) + beside}
        new.require_space(2)
        assert names(tmp_path) == left
    disk["free"] = 3 * ROW
    new.require_space(2)


@pytest.mark.parametrize(
    ("held", "elapsed", "free", "lists"),
    [
        (0.1, 0.0, 1e15, False),
        (0.1, budget.LISTED_SECONDS + 1, 1e15, True),
        (budget.FAR_FROM_FULL, 0.0, 1e15, True),
        (0.1, 0.0, 0.0, True),
    ],
)
def test_the_cache_is_listed_again_unless_it_was_far_from_full_a_moment_ago(
    held: float, elapsed: float, free: float, lists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings = []
    monkeypatch.setattr(budget, "cache_entries", lambda root: listings.append(root) or [])
    limit(monkeypatch, 1)
    budget.make_space(tmp_path, int(1000 * held), folder=tmp_path, keep=())
    now = budget.time.monotonic() + elapsed
    monkeypatch.setattr(budget.time, "monotonic", lambda: now)
    monkeypatch.setattr(budget.shutil, "disk_usage", lambda _root: SimpleNamespace(total=free, free=free))
    with suppress(CacheError):
        budget.make_space(tmp_path, 1, folder=tmp_path, keep=())
    assert len(listings) == 1 + lists


def test_what_was_requested_since_the_listing_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 1)
    for _ in range(9):
        budget.make_space(tmp_path, 100, folder=tmp_path, keep=())
    listings = []
    monkeypatch.setattr(budget, "cache_entries", lambda root: listings.append(root) or [])
    budget.make_space(tmp_path, 100, folder=tmp_path, keep=())
    assert listings == [tmp_path]
