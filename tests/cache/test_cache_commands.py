"""The cache as a whole: its limit, what goes first, what stays, and the command that lists and clears it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from commands import child_of
from filelock import FileLock
from safetensors.numpy import save

from headstart.cache import budget, entries, row_store
from headstart.cache.budget import cache_limit
from headstart.cache.entries import CacheEntry, cache_entries, clear_cache, size_text
from headstart.cache.keys import content_key
from headstart.cache.row_store import RowStore
from headstart.cache.sealed_document import seal_document
from headstart.cli import main as cli
from headstart.errors import CacheError

HOUR = 3600.0
ROW = 10_000
Disk = namedtuple("Disk", "total used free")


def keys(*numbers: int) -> list[bytes]:
    return [content_key(str(n).encode()) for n in numbers]


def rows(*numbers: int) -> np.ndarray:
    return np.array([np.full(ROW, n) for n in numbers], dtype=np.uint8)


def open_store(root: Path, name: str = "a", kind: str = "test") -> RowStore:
    return RowStore(kind, {"architecture": name}, dtype=np.uint8, shape=(ROW,), root=root)


def fill(root: Path, name: str, *, hours: float, count: int = 1, kind: str = "test") -> Path:
    """A closed store of so many rows of 10 kB, last used so many hours ago."""
    made = open_store(root, name, kind)
    made.append(keys(*range(count)), rows(*range(count)))
    age(made.folder, hours)
    return made.folder


def age(folder: Path, hours: float) -> None:
    then = time.time() - hours * HOUR
    os.utime(folder / "used", (then, then))


def names(root: Path) -> list[str]:
    return [entry.about["architecture"] for entry in cache_entries(root)]


@pytest.fixture(autouse=True)
def disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A disk of 1000 GB, all of it free, and no limit set; a test may change both."""
    state = {"total": 1e12, "free": 1e12}
    monkeypatch.setattr(
        "headstart.cache.budget.shutil.disk_usage",
        lambda _: Disk(int(state["total"]), int(state["total"] - state["free"]), int(state["free"])),
    )
    monkeypatch.delenv("HEADSTART_CACHE_LIMIT", raising=False)
    return state


def limit(monkeypatch: pytest.MonkeyPatch, kilobytes: float) -> None:
    monkeypatch.setenv("HEADSTART_CACHE_LIMIT", repr(kilobytes / 1e6))


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
def test_an_entry_is_told_in_words_from_what_made_it(tmp_path: Path, about: dict[str, object], words: str) -> None:
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


def write_plan_file(file: Path) -> Path:
    means = {"conv": np.arange(6000, dtype=np.float64)}
    told = {"about": json.dumps({"architecture": "resnet18"}), "plan": "{}"}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(save(means, told | {"digest": seal_document(save(means, told))}))
    return file


def age_file(file: Path, hours: float) -> None:
    then = time.time() - hours * HOUR
    os.utime(file, (then, then))


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


def test_a_store_never_takes_a_new_folder_of_its_name_for_its_own(tmp_path: Path) -> None:
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


def test_clearing_beside_a_writer_never_mixes_rows_up(tmp_path: Path) -> None:
    """One process appends and reads back, and opens anew whenever this one has cleared the cache under it."""
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
def test_sizes_are_told_in_powers_of_1000(size: float, text: str) -> None:
    assert size_text(size) == text


# the command


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "cache"
    monkeypatch.setenv("HEADSTART_CACHE", str(root))
    fill(root, "resnet18", hours=1, count=3, kind="features")
    fill(root, "resnet34", hours=72, kind="features")
    fill(root, "resnet50", hours=48, count=200, kind="activations")
    fill(root, "resnet50", hours=24, kind="pixels")
    return root


def command(*arguments: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["headstart", "cache", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    status = stop.value.code or 0
    assert isinstance(status, int)
    assert (err == "") == (status == 0)
    return status, out + err


def test_the_command_lists_the_last_used_first_with_total_limit_and_place(
    full: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSTART_CACHE_LIMIT", "0.5")
    status, out = command(capsys=capsys, monkeypatch=monkeypatch)
    lines = out.splitlines()
    assert status == 0
    assert lines[0].split() == ["kind", "content", "rows", "size", "last", "used"]
    day = time.strftime("%Y-%m-%d %H:%M", time.localtime(cache_entries(full)[0].used))
    assert lines[1].split() == ["features", "resnet18", "3", "30.2", "kB", *day.split()]
    assert [line.split()[0] for line in lines[1:-1]] == ["features", "pixels", "activations", "features"]
    assert "2.0 MB" in lines[3]
    assert lines[-1] == f"The cache at {full} holds 2.1 MB; its limit is 500.0 MB."


def test_the_command_in_json(full: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    status, out = command("--json", "--kind", "activations", "--kind", "pixels", capsys=capsys, monkeypatch=monkeypatch)
    told = json.loads(out)
    entries = cache_entries(full)
    assert status == 0
    assert told["cache"] == str(full)
    assert (told["limit"], told["bytes"], told["freed"]) == (50e9, sum(e.bytes for e in entries), 0)
    assert [e["kind"] for e in told["entries"]] == ["pixels", "activations"]
    assert told["entries"][1] == {
        "kind": "activations",
        "name": entries[2].name,
        "what": "resnet50",
        "about": {"architecture": "resnet50"},
        "rows": 200,
        "bytes": entries[2].bytes,
        "used": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(entries[2].used)),
        "path": str(entries[2].path),
    }


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ([], []),
        (["--kind", "activations"], ["features", "pixels", "features"]),
        (["--kind", "activations", "--kind", "pixels"], ["features", "features"]),
        (["--older", "1.5"], ["features", "pixels"]),
        (["--older", "2.5", "--kind", "activations"], ["features", "pixels", "activations", "features"]),
        (["--older", "2.5", "--kind", "features"], ["features", "pixels", "activations"]),
    ],
)
def test_clearing_takes_what_was_asked_for_and_nothing_else(
    full: Path,
    arguments: list[str],
    left: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = cache_entries(full)
    status, _ = command(*arguments, capsys=capsys, monkeypatch=monkeypatch)
    assert cache_entries(full) == before, "removed without --clear"
    status, out = command("--clear", *arguments, capsys=capsys, monkeypatch=monkeypatch)
    after = cache_entries(full)
    assert status == 0
    assert [entry.kind for entry in after] == left
    gone = sum(e.bytes for e in before) - sum(e.bytes for e in after)
    count = len(before) - len(after)
    assert f"Removed {count} {'entry' if count == 1 else 'entries'}, {size_text(gone)}." in out
    assert ("No entry is of that kind or age; there are activations, features, pixels." in out) == (count == 0)
    assert f"holds {size_text(sum(e.bytes for e in after))}; its limit is 50.0 GB" in out


def test_clearing_in_json_names_what_was_removed(
    full: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (pixels,) = [e for e in cache_entries(full) if e.kind == "pixels"]
    _, out = command("--clear", "--kind", "pixels", "--json", capsys=capsys, monkeypatch=monkeypatch)
    told = json.loads(out)
    assert [e["path"] for e in told["removed"]] == [str(pixels.path)]
    assert told["freed"] == pixels.bytes
    assert told["bytes"] == sum(e.bytes for e in cache_entries(full))


def test_an_empty_cache_says_so_and_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "none"))
    for arguments in ([], ["--clear"]):
        assert command(*arguments, capsys=capsys, monkeypatch=monkeypatch) == (
            0,
            f"The cache at {tmp_path / 'none'} is empty.\n",
        )
    assert json.loads(command("--json", capsys=capsys, monkeypatch=monkeypatch)[1])["entries"] == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "limit", "status", "says"),
    [
        (["--clear"], "lots", 1, "Error: HEADSTART_CACHE_LIMIT is 'lots': expected"),
        (["--older", "-1"], "1", 2, "--older"),
        (["--older", "soon"], "1", 2, "--older"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_removed(
    full: Path,
    arguments: list[str],
    limit: str,
    status: int,
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HEADSTART_CACHE_LIMIT", limit)
    code, out = command(*arguments, capsys=capsys, monkeypatch=monkeypatch)
    assert (code, says in out) == (status, True)
    assert len(cache_entries(full)) == 4


def test_the_command_is_quick_and_imports_no_torch(full: Path) -> None:
    script = (
        "import sys; sys.argv = ['headstart', 'cache']\nfrom headstart.cli.main import main\ntry: main()\n"
        "except SystemExit: pass\nsys.exit(any(m in sys.modules for m in ('torch', 'timm', 'sklearn', 'PIL')))"
    )
    times = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        times.append(time.perf_counter() - started)
        assert done.returncode == 0, "something heavy was imported"
        assert "activations" in done.stdout
    assert min(times) < 1


# --verify


def rewrite(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_verifying_names_damaged_entries_removes_their_rows_and_leaves_the_others(
    full: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plan_file(full / "engines" / f"{'a' * 24}.safetensors")
    status, out = command("--verify", capsys=capsys, monkeypatch=monkeypatch)
    assert (status, out) == (0, "Verified 5 entries, 205 rows: none damaged.\n")
    (stored,) = (e for e in cache_entries(full) if e.kind == "activations")
    rewrite(stored.path / "rows.bin", 7 * ROW + 3)
    rewrite(stored.path / "rows.bin", 9 * ROW)
    held = open_store(full, "resnet50", "activations")
    arguments = ["headstart", "cache", "--verify", "--kind", "activations"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out = capsys.readouterr().out
    assert stop.value.code == 1
    assert f"{stored.path} (activations, resnet50): 2 of 200 rows were damaged; removed." in out
    assert "Verified 1 entry, 200 rows: 1 entry damaged." in out
    assert command("--verify", capsys=capsys, monkeypatch=monkeypatch)[0] == 0
    for opened in (held, open_store(full, "resnet50", "activations")):
        opened.drop_damaged(keys(*range(200)))
        assert opened.missing(keys(*range(200))) == [7, 9]
        assert np.array_equal(opened.read(keys(8, 10)), rows(8, 10))


def test_verifying_removes_what_cannot_be_verified_and_passes_over_older_versions(
    full: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = write_plan_file(full / "engines" / f"{'a' * 24}.safetensors")
    rewrite(plan, -1)
    old = full / "features" / ("b" * 24)
    old.mkdir()
    (old / "about.json").write_text('{"architecture": "resnet18"}')
    (old / "keys.bin").write_bytes(bytes(32))
    (old / "rows.bin").write_bytes(bytes(64))
    (pixels,) = (e.path for e in cache_entries(full) if e.kind == "pixels")
    (pixels / "about.json").write_bytes(b"\xff\xfe")
    monkeypatch.setattr(sys, "argv", ["headstart", "cache", "--verify", "--json"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    told = json.loads(capsys.readouterr().out)
    assert (stop.value.code, told["sound"]) == (1, False)
    faults = {one["path"]: one["fault"] for one in told["verified"] if one["fault"]}
    assert faults == {str(plan): "its checksum is wrong; removed", str(pixels): "about.json is damaged; removed"}
    assert [one["path"] for one in told["verified"] if one["older version"]] == [str(old)]
    assert not plan.exists()
    assert not pixels.exists()
    status, out = command("--verify", capsys=capsys, monkeypatch=monkeypatch)
    assert status == 0
    assert "1 entry of an older version, no longer read. Remove with headstart cache --clear." in out


def test_verifying_and_clearing_at_once_is_a_named_mistake(
    full: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out = command("--verify", "--clear", capsys=capsys, monkeypatch=monkeypatch)
    assert status == 2
    assert "choose one of --verify and --clear" in out
    assert len(cache_entries(full)) == 4


def test_an_entry_with_strange_words_is_listed_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
    for number, about in enumerate(
        ('{"architecture": "\\ud800\\n\\u001b[2J"}', "[" * 100_000, '{"pixels": {"height": []}}')
    ):
        folder = fill(tmp_path, str(number), hours=1)
        (folder / "about.json").write_text(about)
        os.utime(folder / "used", (1e18, 1e18) if number else (1, 1))
    status, out = command(capsys=capsys, monkeypatch=monkeypatch)
    assert status == 0
    assert len(out.splitlines()) == 5
    assert "\x1b" not in out
