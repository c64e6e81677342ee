"""Natural order of any number of rows, in memory or in a file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from natsort import natsorted

from headstart.data.natural_order import BLOCK_ROWS, RowSpool, in_natural_order, natural_key
from headstart.errors import CacheError

NAMES = [
    *(
        "a/10.jpg",
        "a/9.jpg",
        "a/09.jpg",
        "a10/2.jpg",
        "a9/12.jpg",
        "a",
        "",
        "1",
        "01",
        "-1",
        "1.50",
        "1.5",
        "b 2",
        "b10",
    ),
    *(
        "é2",
        "é10",
        "e\u0301" + "3",
        "²",
        "٣",
        "日本10",
        "日本9",
        "\udcff2.jpg",
        "A2",
        "a\x01",
        "a0",
        "z" + "9" * 400,
        "z" + "8" * 401,
    ),
]


def test_the_key_gives_the_natural_order() -> None:
    rng = random.Random(0)
    made = ["".join(rng.choices("aB/_. 0129é", k=rng.randint(0, 9))) for _ in range(600)]
    for names in (NAMES, made):
        assert [natural_key(n) for n in sorted(names, key=natural_key)] == [natural_key(n) for n in natsorted(names)]


@pytest.mark.parametrize("count", [0, 5, 10, 1000, 1005])
def test_rows_come_in_the_order_of_their_keys_and_equal_ones_as_they_were_added(count: int, tmp_path: Path) -> None:
    rng = random.Random(1)
    keys = [str(rng.randint(0, 40)) for _ in range(count)]
    spool = RowSpool(tmp_path, run_rows=10)
    for place, key in enumerate(keys):
        spool.add(key, (str(place), "\udcffé\0"))
    expected = [(str(place), "\udcffé\0") for place in sorted(range(count), key=lambda place: keys[place])]
    assert len(spool) == count
    assert list(spool) == list(spool) == expected
    assert not list(tmp_path.iterdir())  # the file has no name


def test_few_rows_need_no_file_and_many_are_not_in_memory(tmp_path: Path) -> None:
    spool = RowSpool(tmp_path / "cache", run_rows=5 * BLOCK_ROWS)
    for place in range(5 * BLOCK_ROWS - 1):
        spool.add("", (str(place),))
    assert not (tmp_path / "cache").exists()
    spool.add("", ("last",))
    assert (tmp_path / "cache").exists()
    assert not spool._waiting
    assert [row[0] for row in spool][-1] == "last"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spool = RowSpool(tmp_path / "file", run_rows=1)
    with pytest.raises(CacheError, match="file: cannot be written"):
        spool.add("", ("a",))


def test_texts_are_sorted_naturally(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
    names = [f"{i % 7}/{i}.jpg" for i in range(300)]
    assert list(in_natural_order(names)) == natsorted(names)
