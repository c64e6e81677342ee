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
