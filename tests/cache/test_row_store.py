from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from commands import child_of
from damage import DAMAGES, files_of

from headstart.cache import entries
from headstart.cache import row_store as stores
from headstart.cache.budget import evict
from headstart.cache.entries import cache_entries, cache_root, remove_entry, size_text
from headstart.cache.keys import content_key, describe_key
from headstart.cache.row_store import DamagedRows, RowStore
from headstart.cache.verify import verify_cache
from headstart.errors import CacheError


def keys(*numbers: int) -> list[bytes]:
    return [content_key(str(n).encode()) for n in numbers]


def rows(*numbers: int) -> np.ndarray:
    return np.array([[n, n + 0.5] for n in numbers], dtype=np.float32)


def open_store(root: Path, about: str = "a") -> RowStore:
    return RowStore("test", {"made by": about}, dtype=np.float32, shape=(2,), root=root)


def test_rows_come_back_in_the_order_asked_for_also_in_a_new_process(tmp_path: Path) -> None:
    open_store(tmp_path).append(keys(1, 2, 3), rows(1, 2, 3))
    store = open_store(tmp_path)
    assert np.array_equal(store.read(keys(3, 1, 3)), rows(3, 1, 3))
    assert store.missing(keys(2, 9, 9, 8)) == [1, 3]
    assert store.read([]).shape == (0, 2)


def test_another_description_is_another_store(tmp_path: Path) -> None:
    open_store(tmp_path, "a").append(keys(1), rows(1))
    assert len(open_store(tmp_path, "b")) == 0
    assert describe_key({"x": 1, "y": 2}) == describe_key({"y": 2, "x": 1})


def test_keys_that_are_there_already_are_not_written_again(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append(keys(1), rows(1))
    store.append(keys(1, 2, 2), rows(7, 2, 2))
    assert np.array_equal(store.read(keys(1, 2)), rows(1, 2))
    assert (store.folder / "rows.bin").stat().st_size == 2 * 8


@pytest.mark.parametrize("tail", [b"", b"x", b"x" * 8, b"x" * 20])
def test_what_a_killed_writer_left_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    store = open_store(tmp_path)
    store.append(keys(1), rows(1))
    with open(store.folder / "rows.bin", "ab") as file:
        file.write(tail)
    with open(store.folder / "keys.bin", "ab") as file:
        file.write(keys(5)[0][: len(tail) % 16])
    again = open_store(tmp_path)
    assert len(again) == 1
    again.append(keys(2, 3), rows(2, 3))
    assert np.array_equal(open_store(tmp_path).read(keys(1, 2, 3)), rows(1, 2, 3))


@pytest.mark.slow
def test_a_writer_killed_at_random_moments_loses_no_finished_row(tmp_path: Path) -> None:
    script = (
        "s = open_store(Path(sys.argv[1]))\n"
        "print('go', flush=True)\n"
        "for n in range(len(s), 10**6): s.append(keys(n), rows(n))"
    )
    command = child_of(__file__, script, tmp_path)
    before = 0
    for wait in (0.02, 0.05, 0.11):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        while not (size := _size(tmp_path)) or size <= before * 24:
            time.sleep(0.001)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        store = open_store(tmp_path)
        assert len(store) > before
        before = len(store)
        assert np.array_equal(store.read(keys(*range(before))), rows(*range(before)))


def _size(root: Path) -> int:
    return sum(file.stat().st_size for file in root.glob("test/*/keys.bin"))


def test_two_writers_see_each_others_rows(tmp_path: Path) -> None:
    one, two = open_store(tmp_path), open_store(tmp_path)
    one.append(keys(1), rows(1))
    two.append(keys(2), rows(2))
    one.append(keys(2, 3), rows(9, 3))
    assert np.array_equal(one.read(keys(1, 2, 3)), rows(1, 2, 3))


def test_a_folder_that_cannot_be_written_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "test").write_text("a file where the folder should be")
    with pytest.raises(CacheError, match="HEADSTART_CACHE"):
        open_store(tmp_path)


def test_too_small_a_disk_is_seen_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"needs [\d,.]+ GB more.*GB are free on the disk.*HEADSTART_CACHE_LIMIT"):
        open_store(tmp_path).require_space(10**15)
    open_store(tmp_path).require_space(1)


def test_a_full_disk_is_a_named_error_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    store.append(keys(1), rows(1))

    extend = RowStore._extend

    def full(self: RowStore, name: str, offset: int, data: bytes) -> None:
        extend(self, name, offset, data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RowStore, "_extend", full)
        with pytest.raises(CacheError, match="disk is full"):
            store.append(keys(2), rows(2))
    assert len(open_store(tmp_path)) == 1
    store.append(keys(2), rows(2))
    assert np.array_equal(open_store(tmp_path).read(keys(1, 2)), rows(1, 2))


def test_reading_does_not_keep_the_file_in_memory(tmp_path: Path) -> None:
    store = big_store(tmp_path)
    before = resident_mb("VmRSS")
    for n in range(160):
        store.read(keys(n))
    assert resident_mb("VmRSS") - before < 30


@pytest.mark.exhaustive
def test_a_large_request_takes_no_memory_but_its_rows(tmp_path: Path) -> None:
    big_store(tmp_path)
    script = (
        "store = RowStore('big', {}, dtype=np.uint8, shape=(1 << 20,), root=Path(sys.argv[1]))\n"
        "wanted = [n * 7 % 160 for n in range(160)]\n"
        "before = resident_mb('VmHWM'); got = store.read(keys(*wanted))\n"
        "assert [row[0] for row in got] == [n // 16 * 16 for n in wanted]\n"
        "print(resident_mb('VmHWM') - before)"
    )
    command = child_of(__file__, script, tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 150 < float(done.stdout) < 160 + 30


def test_rows_of_a_structured_type_and_rows_without_a_shape_come_back(tmp_path: Path) -> None:
    kind = np.dtype([("a", "<u4"), ("b", "u1", (2, 3))])
    data = np.zeros(5, dtype=kind)
    data["a"], data["b"][:, 1, 2] = range(5), range(5)
    store = RowStore("facts", {}, dtype=kind, root=tmp_path)
    store.append(keys(*range(5)), data)
    order = [3, 4, 4, 0, 1, 2] * 1_500  # more than are looked up at once
    assert np.array_equal(store.read(keys(*order)), data[order])


def test_a_file_that_was_cut_short_is_a_named_error(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append(keys(1, 2), rows(1, 2))
    with open(store.folder / "rows.bin", "ab") as file:
        file.truncate(12)
    assert np.array_equal(store.read(keys(1)), rows(1))
    with pytest.raises(CacheError, match="shorter than before"):
        store.read(keys(2))
    with pytest.raises(CacheError, match="shorter than before"):
        store.append(keys(3), rows(3))
    assert np.array_equal(open_store(tmp_path).read(keys(1)), rows(1))


def big_store(root: Path) -> RowStore:
    """160 rows of 1 MB."""
    store = RowStore("big", {}, dtype=np.uint8, shape=(1 << 20,), root=root)
    for n in range(0, 160, 16):
        store.append(keys(*range(n, n + 16)), np.full((16, 1 << 20), n, np.uint8))
    return store


def resident_mb(line: str) -> float:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("no /proc on this system")
    return int(next(text for text in status.read_text().splitlines() if text.startswith(line)).split()[1]) / 1024


# damage


def damaged_keys(store: RowStore, wanted: list[bytes]) -> set[bytes]:
    with pytest.raises(DamagedRows, match=r"damaged and dropped\. Run the same command again") as found:
        store.read(wanted)
    return set(found.value.keys)


@pytest.mark.parametrize("value", [0x00, 0xFF])
def test_rows_that_were_never_written_are_not_read(tmp_path: Path, value: int) -> None:
    """A power cut may leave a file's length and not its content."""
    open_store(tmp_path).append(keys(1, 2, 3), rows(1, 2, 3))
    file = open_store(tmp_path).folder / "rows.bin"
    file.write_bytes(file.read_bytes()[:8] + bytes([value]) * 16)
    store = open_store(tmp_path)
    assert damaged_keys(store, keys(3, 1, 2)) == set(keys(2, 3))
    assert np.array_equal(store.read(keys(1)), rows(1))
    assert store.missing(keys(1, 2, 3)) == [1, 2]
    store.append(keys(2, 3), rows(2, 3))
    for again in (store, open_store(tmp_path)):
        assert np.array_equal(again.read(keys(1, 2, 3)), rows(1, 2, 3))


def test_rows_under_the_keys_of_others_are_not_read(tmp_path: Path) -> None:
    """Rotated by one, every row is sound and every answer another image's."""
    store = open_store(tmp_path)
    store.append(keys(*range(9)), rows(*range(9)))
    (store.folder / "rows.bin").write_bytes(rows(*range(1, 9), 0).tobytes())
    assert damaged_keys(open_store(tmp_path), keys(*range(9))) == set(keys(*range(9)))
    file = store.folder / "keys.bin"
    (store.folder / "rows.bin").write_bytes(rows(*range(9)).tobytes())
    records = np.frombuffer(file.read_bytes(), dtype=[("key", "V16"), ("sum", "V8")]).copy()
    records["key"] = np.roll(records["key"], 1)
    file.write_bytes(records.tobytes())
    assert damaged_keys(open_store(tmp_path), keys(*range(9))) == set(keys(*range(9)))


def test_rows_of_another_store_are_not_read(tmp_path: Path) -> None:
    for name in ("a", "b"):
        open_store(tmp_path, name).append(keys(1), rows(1 if name == "a" else 2))
    a, b = (open_store(tmp_path, name).folder for name in ("a", "b"))
    for file in ("rows.bin", "keys.bin", "about.json"):
        (a / file).write_bytes((b / file).read_bytes())
    store = open_store(tmp_path, "a")
    assert damaged_keys(store, keys(1)) == set(keys(1))
    assert {entry.about["made by"] for entry in cache_entries(tmp_path)} == {"a", "b"}


def test_a_flipped_bit_costs_one_row_and_the_later_row_of_a_key_counts(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append(keys(*range(9)), rows(*range(9)))
    data = bytearray((store.folder / "rows.bin").read_bytes())
    data[4 * 8 + 1] ^= 16
    (store.folder / "rows.bin").write_bytes(data)
    other = open_store(tmp_path)
    assert store.drop_damaged([*keys(*range(9)), *keys(77)]) == 1
    assert store.missing(keys(*range(9))) == [4]
    store.append(keys(4), rows(4))
    assert store.drop_damaged(keys(*range(9))) == 0
    assert damaged_keys(other, keys(4)) == set(keys(4))  # opened before: it has the old place
    other.append(keys(4), rows(4))
    for opened in (store, other, open_store(tmp_path)):
        assert np.array_equal(opened.read(keys(*range(9))), rows(*range(9)))
    assert (store.folder / "rows.bin").stat().st_size == 10 * 8


def test_a_row_that_another_thread_dropped_is_damaged_not_unknown(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append(keys(1), rows(1))
    (store.folder / "rows.bin").write_bytes(bytes(8))
    assert damaged_keys(store, keys(1)) == damaged_keys(store, keys(1)) == set(keys(1))
    with pytest.raises(KeyError):
        store.read(keys(2))


@pytest.mark.parametrize("name", ["about.json", "rows.bin", "keys.bin", "used", "lock"])
def test_a_store_with_a_folder_in_place_of_a_file_is_recreated(tmp_path: Path, name: str) -> None:
    store = open_store(tmp_path)
    store.append(keys(1), rows(1))
    (store.folder / name).unlink()
    (store.folder / name / "x").mkdir(parents=True)
    again = open_store(tmp_path)
    assert len(again) == 0
    again.append(keys(1), rows(1))
    assert np.array_equal(open_store(tmp_path).read(keys(1)), rows(1))
    with pytest.raises(CacheError, match="was removed while it was in use"):
        store.read(keys(1))


def test_a_file_where_the_folder_should_be_is_a_named_error(tmp_path: Path) -> None:
    folder = open_store(tmp_path).folder
    shutil.rmtree(folder)
    folder.write_bytes(b"")
    with pytest.raises(CacheError, match=r"a file has this name\. Remove that file"):
        open_store(tmp_path)


@pytest.mark.slow
def test_hundreds_of_damages_give_no_other_row_and_no_other_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sound = tmp_path / "sound" / "cache"
    for name in ("a", "b"):
        open_store(sound, name).append(keys(*range(12)), rows(*range(12)) if name == "a" else rows(*range(20, 32)))
    names = [file.relative_to(sound) for file in files_of(sound)]
    for number in range(15 * len(DAMAGES)):
        root = tmp_path / "work" / "cache"
        shutil.copytree(sound, root)
        DAMAGES[number % len(DAMAGES)](root / names[number // len(DAMAGES) % len(names)], rng)
        if number % 3 == 0:
            assert all(entry.words for entry in cache_entries(root))
        if number % 3 == 1:
            list(verify_cache(cache_entries(root)))
            assert all(one.sound for one in verify_cache(cache_entries(root)))
        store = open_store(root, "a")
        store.drop_damaged(keys(*range(12)))
        gone = store.missing(keys(*range(12)))
        store.append([keys(n)[0] for n in gone], rows(*gone) if gone else np.empty((0, 2), np.float32))
        for opened in (store, open_store(root, "a")):
            assert np.array_equal(opened.read(keys(*range(12))), rows(*range(12)))
        shutil.rmtree(tmp_path / "work")


# where it is, and what is said


def test_the_cache_is_where_the_environment_says_or_in_the_systems_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
    assert cache_root(tmp_path / "named") == tmp_path / "named"
    monkeypatch.delenv("HEADSTART_CACHE")
    assert cache_root() == Path(platformdirs.user_cache_dir("headstart"))
    monkeypatch.setenv("HEADSTART_CACHE", "~nosuchuser/cache")
    with pytest.raises(CacheError, match=r"no cache folder: .*nosuchuser.* Set HEADSTART_CACHE"):
        cache_root()
    monkeypatch.delenv("HEADSTART_CACHE")

    def homeless(_: str) -> str:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(platformdirs, "user_cache_dir", homeless)
    with pytest.raises(CacheError, match=r"this user has no home folder \(HOME is not set\)\. Set HEADSTART_CACHE"):
        cache_root()


def test_damaged_rows_are_counted_in_words() -> None:
    assert "store: 1 row is damaged and dropped." in str(DamagedRows(Path("store"), keys(1)))
    assert "store: 1,200 rows are damaged and dropped." in str(DamagedRows(Path("store"), [b""] * 1200))


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0.0 kB"), (345, "0.3 kB"), (999_999, "1,000.0 kB"), (1e6, "1.0 MB"), (345e6, "345.0 MB"), (1e9, "1.0 GB")],
)
def test_sizes_are_said_in_powers_of_1000(size: float, text: str) -> None:
    assert size_text(size) == text
    assert size_text(1.25e12) == "1,250.0 GB"


def test_a_cache_that_cannot_be_listed_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"Not a directory\. Set HEADSTART_CACHE to a readable folder"):
        cache_entries(tmp_path / "file")
    assert cache_entries(tmp_path / "gone") == []


def test_a_cache_that_is_only_read_is_used_and_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    store.append(keys(1), rows(1))
    (store.folder / "about.json").unlink()

    def refuses(number: int) -> None:
        def write(*_: object) -> None:
            raise OSError(number, "refused")

        monkeypatch.setattr(stores, "write_atomically", write)

    refuses(errno.EROFS)
    assert np.array_equal(open_store(tmp_path).read(keys(1)), rows(1))
    refuses(errno.EIO)
    with pytest.raises(CacheError, match="refused"):
        open_store(tmp_path)


def test_what_was_set_aside_is_removed(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    (store.folder / "rows.bin").unlink(missing_ok=True)
    (store.folder / "rows.bin").mkdir()
    open_store(tmp_path)
    assert [path.name for path in store.folder.parent.iterdir()] == [store.folder.name]


def test_a_plan_that_cannot_be_read_is_listed_without_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a folder stands in its place, which counts with all that is in it."""
    name = "0123456789abcdef01234567.safetensors"
    plan = tmp_path / "engines" / name
    (plan / "deep").mkdir(parents=True)
    (plan / "deep" / "x").write_bytes(b"x" * 1000)
    (entry,) = cache_entries(tmp_path)
    assert (entry.about, entry.rows, entry.words) == ({}, 0, "engines")
    assert entry.bytes == sum(path.lstat().st_size for path in (plan, plan / "deep", plan / "deep" / "x"))
    shutil.rmtree(plan)
    plan.write_bytes(b"nothing")

    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(entries, "open", refused, raising=False)
    (entry,) = cache_entries(tmp_path)
    assert (entry.about, entry.bytes) == ({}, 7)


def test_an_entry_counts_its_bytes_and_its_rows(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert [(own.rows, own.kind) for own in cache_entries(tmp_path)] == [(0, store.folder.parent.name)]
    store.append(keys(*range(7)), rows(*range(7)))
    (entry,) = cache_entries(tmp_path)
    assert (entry.rows, entry.bytes) == (7, sum(path.stat().st_size for path in store.folder.iterdir()))


def test_what_was_used_since_it_was_listed_is_not_removed_for_room(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append(keys(1), rows(1))
    listed = cache_entries(tmp_path)
    os.utime(store.folder / "used", (1e9, 1e9))
    assert evict(listed, 1) == 0
    assert remove_entry(listed[0], wait=0, unless_used=True) is False
    assert store.folder.is_dir()
    listed = cache_entries(tmp_path)
    assert evict(listed, 0) == 0
    assert evict(listed, 1) == listed[0].bytes
    assert not store.folder.exists()


@pytest.mark.parametrize(("stamp", "used"), [(0.5, 0.5), (1e9, 1e9), (-1.0, 0.0)])
def test_times_before_1970_are_none_of_ours(tmp_path: Path, stamp: float, used: float) -> None:
    store = open_store(tmp_path)
    os.utime(store.folder / "used", (stamp, stamp))
    assert cache_entries(tmp_path)[0].used == used
