from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from headstart.reports import contact_sheets as sheets
from headstart.reports.contact_sheets import ACROSS, DOWN, SIDE, make_sheets


def colour(i: int) -> tuple[int, int, int]:
    return 40 + 10 * (i % 20), 40 + 8 * (i // 20), 128


def written(folder: Path, count: int) -> list[str]:
    paths = [str(folder / f"{i}.png") for i in range(count)]
    for i, path in enumerate(paths):
        Image.new("RGB", (30 + i % 3, 30), colour(i)).save(path)
    return paths


def test_each_image_has_a_tile_at_its_position(tmp_path: Path) -> None:
    count = ACROSS * DOWN + 5
    paths = written(tmp_path, count)
    made = make_sheets([*paths, paths[3]])
    assert len(made.addresses) == 2
    assert sorted(made.tiles.values()) == list(range(count))
    opened = [Image.open(io.BytesIO(base64.b64decode(a.partition(",")[2]))) for a in made.addresses]
    for i in (0, 7, 399, 400, 404):
        sheet, own = divmod(made.tiles[paths[i]], ACROSS * DOWN)
        x, y = own % ACROSS * SIDE + SIDE // 2, own // ACROSS * SIDE + SIDE // 2
        assert np.abs(np.subtract(opened[sheet].getpixel((x, y)), colour(i))).max() < 12


def test_an_unreadable_image_is_listed_and_shifts_no_tile(tmp_path: Path) -> None:
    paths = written(tmp_path, 3)
    Path(paths[1]).write_text("no image")
    made = make_sheets(paths)
    assert made.unread == (paths[1],)
    assert made.tiles == {paths[0]: 0, paths[2]: 1}


def test_the_size_of_the_sheets_is_limited(tmp_path: Path, monkeypatch: object) -> None:
    paths = written(tmp_path, 30)
    monkeypatch.setattr(sheets, "ACROSS", 2)
    monkeypatch.setattr(sheets, "DOWN", 2)
    one = len(make_sheets(paths[:4]).addresses[0])
    made = make_sheets(paths, most_bytes=int(2.5 * 0.75 * one))
    assert len(made.tiles) == 8
    assert set(made.tiles) == set(paths[:8])
