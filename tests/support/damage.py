"""Kinds of damage to cache files: power loss, disk errors, and foreign content."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

Damage = Callable[[Path, np.random.Generator], None]


def flip_bit(file: Path, rng: np.random.Generator) -> None:
    _change(file, rng, lambda data, at: data.__setitem__(at, data[at] ^ 1 << int(rng.integers(8))))


def cut_short(file: Path, rng: np.random.Generator) -> None:
    os.truncate(file, int(rng.integers(file.stat().st_size + 1)))


def zero_from(file: Path, rng: np.random.Generator) -> None:
    """Zeroes the end of a file, as after power loss: the size was written, the last pages were not."""
    _change(file, rng, lambda data, at: data.__setitem__(slice(at, None), bytes(len(data) - at)))


def zero_all(file: Path, rng: np.random.Generator) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def rotate(file: Path, rng: np.random.Generator) -> None:
    """Rotates a file by one row, so that keys refer to rows of other images."""
    data = file.read_bytes()
    step = {"keys.bin": 24, "rows.bin": max(1, len(data) // 12)}.get(file.name, 1)
    file.write_bytes(data[step:] + data[:step])


def make_noise(file: Path, rng: np.random.Generator) -> None:
    file.write_bytes(rng.bytes(file.stat().st_size))


def noise_at(file: Path, rng: np.random.Generator) -> None:
    def change(data: bytearray, at: int) -> None:
        end = min(len(data), at + int(rng.integers(1, 64)))
        data[at:end] = rng.bytes(end - at)

    _change(file, rng, change)


def lengthen(file: Path, rng: np.random.Generator) -> None:
    with open(file, "ab") as opened:
        opened.write(rng.bytes(int(rng.integers(1, 5000))))


def empty(file: Path, rng: np.random.Generator) -> None:
    file.write_bytes(b"")


def remove(file: Path, rng: np.random.Generator) -> None:
    file.unlink()


def become_folder(file: Path, rng: np.random.Generator) -> None:
    file.unlink()
    file.mkdir()
    (file / "x").write_bytes(b"x")


def swap(file: Path, rng: np.random.Generator) -> None:
    """Swaps the content with another file of the cache."""
    others = files_of(file.parents[2] if file.parent.parent.name != "cache" else file.parents[1])
    other = others[int(rng.integers(len(others)))]
    held = file.read_bytes()
    file.write_bytes(other.read_bytes())
    other.write_bytes(held)


def swap_with_namesake(file: Path, rng: np.random.Generator) -> None:
    """Swaps the content with the file of the same name in another store."""
    root = file.parents[1] if file.parent.name == "engines" else file.parents[2]
    others = [other for other in files_of(root) if other.suffix == file.suffix and other != file] or [file]
    other = others[int(rng.integers(len(others)))]
    held = file.read_bytes()
    file.write_bytes(other.read_bytes())
    other.write_bytes(held)


def write_text(file: Path, rng: np.random.Generator) -> None:
    texts = [
        b"[" * 100_000,
        b'{"a": "\\ud800"}',
        b"{}",
        b"null",
        b'{"store": 2, "row_bytes": -1, "about": []}',
        b"\xff",
    ]
    file.write_bytes(texts[int(rng.integers(len(texts)))])


DAMAGES: tuple[Damage, ...] = (
    flip_bit,
    cut_short,
    zero_from,
    zero_all,
    rotate,
    make_noise,
    noise_at,
    lengthen,
    empty,
    remove,
    become_folder,
    swap,
    swap_with_namesake,
    write_text,
)


def _change(file: Path, rng: np.random.Generator, change: Callable[[bytearray, int], None]) -> None:
    data = bytearray(file.read_bytes())
    if data:
        change(data, int(rng.integers(len(data))))
        file.write_bytes(data)


def files_of(cache: Path) -> list[Path]:
    return sorted(file for file in cache.rglob("*") if file.is_file())
