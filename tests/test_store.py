from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from headstart.errors import CacheError
from headstart.store import RowStore, content_key, describe_key


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


def test_a_writer_killed_at_random_moments_loses_no_finished_row(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path; from test_store import *\n"
        "s = open_store(Path(sys.argv[1]))\n"
        "print('go', flush=True)\n"
        "for n in range(len(s), 10**6): s.append(keys(n), rows(n))"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)]
    before = 0
    for wait in (0.02, 0.05, 0.11):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        while not (size := _size(tmp_path)) or size <= before * 16:
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

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("headstart.store.os.fsync", full)
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
        "import sys; sys.path.insert(0, sys.argv[2]); from test_store import *\n"
        "store = RowStore('big', {}, dtype=np.uint8, shape=(1 << 20,), root=Path(sys.argv[1]))\n"
        "wanted = [n * 7 % 160 for n in range(160)]\n"
        "before = resident_mb('VmHWM'); got = store.read(keys(*wanted))\n"
        "assert [row[0] for row in got] == [n // 16 * 16 for n in wanted]\n"
        "print(resident_mb('VmHWM') - before)"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)]
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
    with pytest.raises(CacheError, match="shorter than it was"):
        store.read(keys(2))
    with pytest.raises(CacheError, match="shorter than it was"):
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
