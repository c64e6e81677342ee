"""Local images: the inputs of predictions that need nothing but files of this machine, or that are in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..data.image_source import READERS, ImageSource, from_path, is_one_image
from ..errors import DataError, OptionError
from ..files import user_path

ACCEPTED = (
    "a path; a file's bytes; an open binary file or an HTTP response; a Pillow image; an array of shape (H, W) or "
    "(H, W, 1, 3 or 4) of uint8, uint16, bool, or floats in [0, 1]; or a list of such images"
)


def read_local(images: object) -> tuple[list[ImageSource], bool]:
    """Reads one image or several.

    Args:
        images: see ``ACCEPTED``.

    Returns:
        The images, and whether a single image was given.

    Raises:
        OptionError: the type is not accepted.
        DataError: a single path does not exist, or a path is a folder.
    """
    if isinstance(images, Mapping) or hasattr(images, "columns") or hasattr(images, "column_names"):
        raise OptionError(f"{type(images).__name__} is not an image. Accepted: {ACCEPTED}.")
    if isinstance(images, Iterable) and not is_one_image(images):
        return [_read(image, f"image {place}: ") for place, image in enumerate(images)], False
    if isinstance(images, (str, os.PathLike)) and not user_path(images).exists():
        raise DataError(f"{os.fspath(images)}: no such file.")
    return [_read(images, "")], True


def _read(image: object, where: str) -> ImageSource:
    if (source := from_path(image, where, lambda path: str(user_path(path)))) is not None:
        if os.path.isdir(path := str(source.content)):
            raise DataError(f"{source.name}: a folder. Give the images in it, such as {Path(path) / '*.jpg'}.")
        return source
    for read in READERS:
        if (source := read(image, where)) is not None:
            return source
    raise OptionError(f"{where}{type(image).__name__} is not an image. Accepted: {ACCEPTED}.")
