"""Images encoded to bytes: four quadrants of colour, and PNGs of any bit depth."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image
from random_images import COLOURS, random_image

QUADRANTS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], dtype=np.uint8)


def quadrants(side: int = 64) -> Image.Image:
    return Image.fromarray(QUADRANTS).resize((side, side // 2), Image.Resampling.NEAREST)


def encoded(image: Image.Image, kind: str, **settings: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **settings)
    return data.getvalue()


def png(width: int, height: int, *, depth: int = 8, colour: int = 2, rows: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body


def coloured_png(seed: int, colour: str = "red") -> bytes:
    return encoded(random_image(seed, COLOURS[colour]), "PNG")


def subsampled_jpeg(image: Image.Image, across: int, down: int, *, quality: int = 90) -> bytes:
    """A JPEG with one chroma sample for ``across`` x ``down`` pixels, also 4:4:0 (1, 2) and 4:1:1 (4, 1).

    Pillow writes 4:4:4, 4:2:2 and 4:2:0 only. The others have blocks as 4:2:2 or 4:2:0, in another arrangement: the
    image is cropped to whole groups of blocks, these are moved to where the usual file has them, and its header
    is changed.
    """
    usual = {(1, 1): 0, (2, 1): 1, (2, 2): 2}
    if (across, down) in usual:
        return encoded(image, "JPEG", quality=quality, subsampling=usual[across, down])
    side_across, side_down = {2: (2, 1), 4: (2, 2)}[across * down]
    columns, rows = image.width // (8 * across), image.height // (8 * down)
    pixels = np.asarray(image.convert("YCbCr"))[: 8 * down * rows, : 8 * across * columns]
    luma = pixels[..., 0].reshape(rows, down, 8, columns, across, 8).transpose(0, 3, 1, 4, 2, 5)
    luma = luma.reshape(rows, columns, side_down, side_across, 8, 8).transpose(0, 2, 4, 1, 3, 5)
    chroma = pixels[..., 1:].reshape(8 * rows, down, 8 * columns, across, 2).mean(axis=(1, 3)).round()
    chroma = chroma.repeat(side_down, axis=0).repeat(side_across, axis=1).astype(np.uint8)
    moved = np.dstack([luma.reshape(chroma.shape[:2]), chroma])
    data = bytearray(
        encoded(Image.fromarray(moved, "YCbCr"), "JPEG", quality=quality, subsampling=usual[side_across, side_down])
    )
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", 8 * down * rows, 8 * across * columns)
    data[start + 11] = 16 * across + down
    return bytes(data)
