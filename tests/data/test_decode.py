from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from encoded_images import encoded, png, quadrants
from PIL import Image
from random_images import random_image

from headstart.concurrency import map_images
from headstart.data.decode import decode
from headstart.data.image_formats import has_expected_suffix
from headstart.data.preprocessing import Preprocessing, resize_and_crop
from headstart.data.rgb import as_rgb
from headstart.errors import LargeImage, UnreadableImage


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    w, h = image.size
    points = [(2, 2), (w - 3, 2), (2, h - 3), (w - 3, h - 3)]
    return [tuple(round(v / 255) for v in image.getpixel(p)) for p in points]


R, G, B, W = (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, [R, G, B, W]),
        (2, [G, R, W, B]),
        (3, [W, B, G, R]),
        (4, [B, W, R, G]),
        (5, [R, B, G, W]),
        (6, [G, W, R, B]),
        (7, [W, G, B, R]),
        (8, [B, R, W, G]),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_exif_orientation_comes_out_upright(
    orientation: int, stored: list[tuple[int, int, int]], kind: str
) -> None:
    small = np.array(stored, dtype=np.uint8).reshape(2, 2, 3) * 255
    wide = orientation <= 4
    image = Image.fromarray(small).resize((64, 32) if wide else (32, 64), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encoded(image, kind, exif=exif))
    assert corners(decoded.image) == [R, G, B, W]
    assert (decoded.width, decoded.height) == decoded.image.size == (64, 32)


def test_a_turned_jpeg_that_is_reduced_while_decoding_reports_its_full_upright_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode(encoded(random_image(0, size=(1200, 2000)), "JPEG", exif=exif), min_side=256)
    assert (decoded.width, decoded.height) == (2000, 1200)
    assert decoded.image.size == (500, 300)


def test_jpegs_are_never_decoded_below_what_is_needed() -> None:
    for side in (256, 511, 512, 1024, 1030, 3000):
        for min_side in (64, 256, 300):
            short = min(decode(encoded(random_image(1, size=(side, side + 9)), "JPEG"), min_side=min_side).image.size)
            assert short >= min(side, min_side)
            assert short <= 2 * min_side or side / short > 7.9  # 1/8 is the smallest scale that JPEG has


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_format_gives_the_same_image(kind: str) -> None:
    settings = {"quality": 95} if kind in ("JPEG", "WEBP", "AVIF") else {}
    decoded = decode(encoded(random_image(2), kind, **settings))
    assert decoded.format == kind
    gap = np.abs(np.asarray(decoded.image).astype(int) - np.asarray(random_image(2)))
    assert gap.mean() < 6


def test_cmyk_grey_palette_and_one_bit_become_rgb() -> None:
    image = random_image(3)
    for mode, kind, limit in [("CMYK", "JPEG", 12), ("CMYK", "TIFF", 2), ("L", "PNG", 0), ("P", "PNG", 20)]:
        decoded = decode(encoded(image.convert(mode), kind)).image
        expected = image.convert(mode).convert("RGB")
        assert decoded.mode == "RGB"
        assert np.abs(np.asarray(decoded).astype(int) - np.asarray(expected)).mean() <= limit
    black_white = decode(encoded(image.convert("1"), "PNG")).image
    assert set(np.unique(np.asarray(black_white))) <= {0, 255}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_range(kind: str) -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(1, -1).repeat(32, 0)
    decoded = np.asarray(decode(encoded(Image.fromarray(ramp), kind)).image)
    assert np.array_equal(decoded[..., 0], ramp >> 8)
    assert decoded.min() == 0
    assert decoded.max() == 255


def test_16_bit_rgb_png_keeps_its_range() -> None:
    ramp = np.linspace(0, 65535, 64, dtype=">u2").reshape(1, -1, 1).repeat(8, 0).repeat(3, 2)
    rows = b"".join(b"\0" + row.tobytes() for row in ramp)
    decoded = np.asarray(decode(png(64, 8, depth=16, colour=2, rows=rows)).image)
    assert np.abs(decoded.astype(int) - (ramp.astype(int) >> 8)).max() <= 1


def test_transparency_is_laid_over_white() -> None:
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    clear.putpixel((0, 0), (0, 0, 0, 255))
    half = Image.new("RGBA", (20, 20), (0, 0, 0, 128))
    assert decode(encoded(clear, "PNG")).image.getpixel((5, 5)) == (255, 255, 255)
    assert decode(encoded(half, "PNG")).image.getpixel((5, 5)) == (127, 127, 127)
    assert decode(encoded(clear.convert("LA"), "PNG")).image.getpixel((5, 5)) == (255, 255, 255)
    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((0, 0), 0)
    assert decode(encoded(palette, "PNG", transparency=1)).image.getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["TGA", "PNG", "BMP V5", "LA", "PA", "16 bits"])
def test_an_alpha_channel_that_is_zero_everywhere_is_no_alpha(kind: str) -> None:
    image = random_image(3)
    expected = image.convert("L").convert("RGB") if kind == "LA" else image
    bare = image.convert("RGBA")
    bare.putalpha(0)
    if kind == "16 bits":
        deep = np.asarray(bare).astype(">u2") * 257
        data = png(48, 40, depth=16, colour=6, rows=b"".join(b"\0" + row.tobytes() for row in deep))
    elif kind == "BMP V5":
        data = bmp_v5(bare)
    elif kind == "PA":
        few = image.quantize(200)
        expected, data = few.convert("RGB"), encoded(few, "PNG", transparency=bytes(256))
    else:
        data = encoded(bare.convert("LA") if kind == "LA" else bare, "PNG" if kind == "LA" else kind)
    assert np.array_equal(decode(data).image, expected)


def bmp_v5(image: Image.Image) -> bytes:
    """With masks of bits for four channels, the last of them alpha."""
    body = np.asarray(image)[::-1, :, [2, 1, 0, 3]].tobytes()
    masks = 0xFF0000, 0xFF00, 0xFF, 0xFF000000
    head = struct.pack("<IiiHHIIiiII4I", 124, *image.size, 1, 32, 3, len(body), 0, 0, 0, 0, *masks) + bytes(68)
    return struct.pack("<2sIHHI", b"BM", 14 + 124 + len(body), 0, 0, 14 + 124) + head + body


@pytest.mark.parametrize("most", [200, 1023, 4095, 65535])
@pytest.mark.parametrize("kind", [b"P5", b"P6", b"P2"])
def test_pgm_and_ppm_are_scaled_by_their_maximum(most: int, kind: bytes) -> None:
    image = random_image(3) if kind == b"P6" else random_image(3).convert("L")
    values = np.rint(np.asarray(image) / 255 * most).astype("u1" if most < 256 else ">u2")
    body = " ".join(map(str, values.ravel())).encode() if kind == b"P2" else values.tobytes()
    decoded = decode(kind + f" 48 40 {most}\n".encode() + body)
    gap = np.abs(np.asarray(decoded.image).astype(int) - np.asarray(image.convert("RGB")))
    assert gap.max() <= (1 if most == 200 or kind == b"P2" else 0)
    if kind == b"P5":
        assert decoded.bits == max(8, most.bit_length())


def test_a_pgm_that_ends_too_early_is_refused() -> None:
    with pytest.raises(UnreadableImage, match="truncated"):
        decode(b"P5 48 40 1023\n" + bytes(3000))


@pytest.mark.parametrize("flags", [(1, 0), (1, 1), (4, 0), (0, 0), (0, 1)])
def test_of_a_tiff_the_thumbnail_before_the_page_is_passed_over(flags: tuple[int, int]) -> None:
    small, large = random_image(1, size=(60, 40)), random_image(1, size=(300, 200))
    data = bytearray(encoded(small, "TIFF", save_all=True, append_images=[large], tiffinfo={254: 77}))
    for flag in flags:
        place = data.index(struct.pack("<HHII", 254, 4, 1, 77)) + 8
        data[place : place + 2] = struct.pack("<H", flag)
    assert decode(bytes(data)).image.size == (large if flags[0] else small).size


@pytest.mark.parametrize("ending", ["cr2", "nef", "arw", "dng"])
def test_camera_raw_files_are_refused_with_what_to_do(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(encoded(quadrants(64), "TIFF"))  # the preview that such a file begins with
    with pytest.raises(UnreadableImage, match="camera raw: export it as JPEG or TIFF first"):
        decode(path)
    path.write_bytes(b"something else")
    with pytest.raises(UnreadableImage, match="camera raw"):
        decode(path)
    for start in (b"FUJIFILMCCD-RAW 0201", b"\0\0\0\x18ftypcrx ", b"II*\0\x10\0\0\0CR\2\0", b"IIU\0\x18\0"):
        with pytest.raises(UnreadableImage, match="camera raw"):
            decode(start + bytes(99))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    first, second = Image.new("RGB", (30, 30), (250, 0, 0)), Image.new("RGB", (30, 30), (0, 0, 250))
    data = encoded(first, kind, save_all=True, append_images=[second])
    red, _, blue = decode(data).image.getpixel((9, 9))
    assert red > 200
    assert blue < 50


def test_the_content_decides_the_format_whatever_the_name(tmp_path: Path) -> None:
    path = tmp_path / "größe ☃ 图.jpg"
    path.write_bytes(encoded(random_image(4), "PNG"))
    decoded = decode(path)
    assert decoded.format == "PNG"
    assert not has_expected_suffix(str(path), decoded.format)
    assert has_expected_suffix("a.JPG", "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (encoded(random_image(5, size=(300, 300)), "JPEG")[:2000], "truncated"),
        (encoded(random_image(5, size=(300, 300)), "PNG")[:2000], "truncated"),
        (encoded(random_image(5, size=(300, 300)), "WEBP")[:900], "damaged|truncated|beginning"),
        (b"just some words, no image\n" * 9, "a text file"),
        (bytes(5000), "only zero bytes"),
        (png(50_000, 50_000), "too large"),
        (png(0, 0), "no pixels"),
        (encoded(Image.new("F", (9, 9), 0.5), "TIFF"), "32-bit"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC|heif|not an image"),
    ],
)
def test_what_is_no_image_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        decode(data)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match=r"gone\.jpg: no such file"):
        decode(tmp_path / "gone.jpg")
    with pytest.raises(UnreadableImage, match="is a directory"):
        decode(tmp_path)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_lose_the_image() -> None:
    data = encoded(random_image(6), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert decode(data).image.size == (48, 40)


def test_arrays_and_pillow_images_in_memory() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.asarray(as_rgb(grey)).shape == (3, 4, 3)
    assert np.asarray(as_rgb(grey[..., None])).shape == (3, 4, 3)
    clear = np.zeros((3, 4, 4), dtype=np.uint8)
    clear[0, 0, 3] = 255
    assert np.asarray(as_rgb(clear))[1:].min() == 255
    ignored = np.full((3, 4, 4), 7, dtype=np.uint8)
    ignored[..., 3] = 0
    assert np.asarray(as_rgb(ignored)).max() == 7
    assert as_rgb(random_image(0).convert("CMYK")).mode == "RGB"
    for wrong in (grey.astype(np.float32), np.zeros((2, 2, 5), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(UnreadableImage, match="array"):
            as_rgb(wrong)


def test_map_images_keeps_order_and_never_runs_far_ahead() -> None:
    started: list[int] = []

    def work(item: int) -> int:
        started.append(item)
        return item * item

    results = map_images(work, range(1000), ahead=16)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert len(started) <= 3 + 16
    assert list(results) == [i * i for i in range(3, 1000)]


def test_an_image_of_too_many_pixels_is_refused_by_its_header() -> None:
    image_data = encoded(quadrants(64), "PNG")
    assert decode(image_data, max_pixels=64 * 32).image.size == (64, 32)
    with pytest.raises(UnreadableImage, match=r"too large: 64 x 32 pixels; the limit is 0\.002 million"):
        decode(image_data, max_pixels=2000)
    header_alone = encoded(quadrants(64), "PNG")[:50]
    with pytest.raises(UnreadableImage, match="too large"):
        decode(header_alone, max_pixels=2000)


def test_what_takes_more_memory_than_there_is_now_is_not_decoded() -> None:
    white = Image.new("RGB", (1024, 512))
    for data, pixels in {
        encoded(white, "PNG"): 1024 * 512,
        encoded(white, "JPEG"): 512 * 256,  # is reduced
        encoded(white, "JPEG", progressive=True): 512 * 256 + 1024 * 512 * 6 // 16,  # but its coefficients are not
    }.items():
        with pytest.raises(LargeImage) as large:
            decode(data, max_decoded_pixels=pixels - 1)
        assert large.value.pixels == pixels
        assert np.array_equal(decode(data, max_decoded_pixels=pixels).image, decode(data).image)
    line, own = Image.new("RGB", (10, 100)), Preprocessing(height=32, width=32, crop_pct=1)
    assert resize_and_crop(line, own, max_decoded_pixels=32 * 320).shape == (32, 32, 3)
    with pytest.raises(LargeImage):
        resize_and_crop(line, own, max_decoded_pixels=32 * 320 - 1)


def test_a_line_that_would_grow_out_of_proportion_is_refused() -> None:
    wide = Image.new("L", (60_000, 1))
    own = Preprocessing(height=224, width=224)
    with pytest.raises(UnreadableImage, match="aspect ratio too extreme: 60,000 x 1 pixels"):
        resize_and_crop(as_rgb(wide), own)
    assert resize_and_crop(as_rgb(Image.new("L", (600, 1))), own).shape == (224, 224, 3)


def progressive(scans: int) -> bytes:
    """A JPEG whose last scan stands there so many times more."""
    data = encoded(quadrants(64), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * (scans - data.count(b"\xff\xda") + 1) + data[-2:]


def test_jpegs_that_take_their_reader_over_and_over_are_refused() -> None:
    assert decode(progressive(100)).image.size == (64, 32)
    with pytest.raises(UnreadableImage, match="more than 200 scans"):
        decode(progressive(201))
    plain = encoded(quadrants(64), "JPEG")
    padded = plain[:2] + b"\xff\xe5\x00\x02" * 6000 + plain[2:]
    with pytest.raises(UnreadableImage, match="5,000 segments"):
        decode(padded)


def test_what_lies_behind_a_jpegs_end_counts_not() -> None:
    """Phones put films there."""
    plain = encoded(quadrants(64), "JPEG")
    assert decode(plain + b"\xff\xda\x00\x02" * 9000).image.size == (64, 32)
    exif = b"\xff\xe1\x9c\x42" + b"\xff\xda" * 20_000
    assert decode(plain[:2] + exif + plain[2:]).image.size == (64, 32)


def test_only_formats_of_images_are_opened() -> None:
    for kind in ("EPS", "PDF", "ICNS", "PCX"):
        data = encoded(quadrants(64), kind)
        with pytest.raises(UnreadableImage, match="not an image"):
            decode(data)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA"):
        assert decode(encoded(quadrants(64), kind)).image.size == (64, 32), kind


@pytest.mark.parametrize("kind", ["16-bit colour", "PGM", "PPM"])
def test_an_image_that_pillow_opened_is_scaled_as_its_file_is(tmp_path: Path, kind: str) -> None:
    values = (np.asarray(random_image(3)).astype(np.uint16) * 3).astype(">u2")
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    content = {
        "16-bit colour": png(width, height, depth=16, rows=rows),
        "PGM": f"P5 {width} {height} 1000\n".encode() + values[..., 0].tobytes(),
        "PPM": f"P6 {width} {height} 1000\n".encode() + values.tobytes(),
    }[kind]
    (tmp_path / "a").write_bytes(content)
    for value_range in (None, (0.001, 0.011) if kind == "16-bit colour" else (0.1, 0.9)):
        of_file = np.asarray(decode(content, value_range=value_range).image)
        with Image.open(tmp_path / "a") as opened:
            of_image = np.asarray(as_rgb(opened, value_range=value_range))
        assert np.array_equal(of_file, of_image), value_range
        assert of_file.std() > 10 or value_range is None
