from __future__ import annotations

import struct

import numpy as np
import pytest
from encoded_images import encoded, png
from PIL import Image
from random_images import random_image

from headstart.data.decode import decode


def tiff(values: np.ndarray, *, order: str = "<", photometric: int | None = None, bits: int = 16) -> bytes:
    """(H, W) or (H, W, 3) values of 16 bits, not compressed; of 12 bits, two in three bytes."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    body = values.astype(order + "u2").tobytes()
    if bits == 12:
        first, second = values.reshape(-1, 2).astype(int).T
        body = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()
    meaning = photometric if photometric is not None else 1 if channels == 1 else 2
    short = {256: width, 257: height, 258: bits, 259: 1, 262: meaning, 273: 0, 277: channels, 278: height}
    place = 8 + 2 + 12 * 9 + 4
    each = struct.pack(f"{order}{channels}H", *[bits] * channels)
    entries = b""
    for number, value in short.items():
        if number == 258 and channels > 1:
            entries += struct.pack(f"{order}HHII", number, 3, channels, place)
        elif number == 273:
            entries += struct.pack(f"{order}HHII", number, 4, 1, place + len(each))
        else:
            entries += struct.pack(f"{order}HHIHH", number, 3, 1, value, 0)
    entries += struct.pack(f"{order}HHII", 279, 4, 1, len(body))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, 9)
    return head + entries + bytes(4) + each + body


def test_12_bits_of_a_12_bit_tiff_reach_white_and_a_negative_is_turned() -> None:
    ramp = np.linspace(0, 4095, 64).astype(np.uint16).reshape(1, -1).repeat(8, 0)
    decoded = decode(tiff(ramp, bits=12))
    assert (decoded.bits, decoded.used_bits) == (12, 12)
    assert np.array_equal(np.asarray(decoded.image)[..., 0], np.rint(ramp / 4095 * 255))
    for order in "<", ">":
        straight = np.asarray(decode(tiff(ramp * 16, order=order)).image)[..., 0]
        assert np.array_equal(straight, ramp >> 4)
    negative = np.asarray(decode(tiff(ramp * 16, photometric=0)).image)[..., 0]
    assert np.array_equal(negative, (65535 - ramp * 16) >> 8)


@pytest.mark.parametrize("kind", ["png", "tiff <", "tiff >", "grey png", "lzw"])
def test_a_value_range_uses_every_bit_of_grey_and_of_colours(kind: str) -> None:
    """In 12 of 16 bits, 4 are left where each colour is cut to 8 first."""
    values = np.random.default_rng(0).integers(0, 4096, (20, 32, 3)).astype(np.uint16)
    if kind == "png":
        data = png(32, 20, depth=16, colour=2, rows=b"".join(b"\0" + row.tobytes() for row in values.astype(">u2")))
    elif kind == "grey png":
        values = values[..., :1].repeat(3, 2)
        data = encoded(Image.fromarray(values[..., 0]), "PNG")
    elif kind == "lzw":
        values = values[..., :1].repeat(3, 2)
        data = encoded(Image.fromarray(values[..., 0]), "TIFF", compression="tiff_lzw")
    else:
        data = tiff(values, order=kind[-1])
    plain = decode(data)
    assert (plain.bits, plain.used_bits) == (16, 12)
    assert np.array_equal(plain.image, values >> 8)
    seen = np.asarray(decode(data, value_range=(1000 / 65535, 4000 / 65535)).image)
    gap = np.abs(seen - ((values - 1000.0) / 3000).clip(0, 1) * 255)
    assert gap.max() < 0.5 + 1e-6


def test_a_deep_image_that_exif_turns_comes_out_upright() -> None:
    values = np.zeros((20, 30), np.uint16)
    values[:5, :5] = 4000
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in "PNG", "TIFF":
        seen = np.asarray(decode(encoded(Image.fromarray(values), kind, exif=exif), value_range=(0, 0.0625)).image)
        assert seen.shape == (30, 20, 3)
        assert seen[:5, -5:].min() > 200
        assert seen[5:].max() == 0


def test_a_value_range_leaves_files_of_8_bits_alone() -> None:
    data = encoded(random_image(1), "PNG")
    assert np.array_equal(decode(data, value_range=(0, 0.1)).image, random_image(1))
    assert (decode(data).bits, decode(data).used_bits) == (8, 8)
