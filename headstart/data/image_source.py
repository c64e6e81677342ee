"""Images in memory: bytes of a file, open files, Pillow images and arrays, as inputs of predictions."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import OptionError

CHANNELS = (1, 3, 4)
UINT16_MAX = 65535


@dataclass(frozen=True)
class ImageSource:
    """One image to decode.

    Attributes:
        name: path, URL or ``CONTAINER::MEMBER`` as given, name of an open file, or "<bytes>", "<image>", "<array>",
            "<tensor>".
        content: address, content of a file, Pillow image, or (H, W) or (H, W, C) array of uint8 or uint16.
    """

    name: str
    content: str | bytes | Image.Image | npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


FORMS = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, ImageSource, np.ndarray)
"""Types of one image that can also be iterated over."""


def is_one_image(images: Any) -> bool:
    """Whether an object is a single image in one of the forms below, although it may be iterable."""
    return isinstance(images, FORMS) or hasattr(images, "read") or is_response(images) or is_buffer(images)


def from_source(image: Any, _: str) -> ImageSource | None:
    """An image that is read already."""
    return image if isinstance(image, ImageSource) else None


def from_path(image: Any, where: str, address_of: Callable[[Any], str]) -> ImageSource | None:
    """An image by its path; among several images, one that no file can have is left to be an error of that image.

    Args:
        image: any object.
        where: prefix of error messages; "" for a single image.
        address_of: parses a path, or raises OptionError.
    """
    if not isinstance(image, (str, os.PathLike)):
        return None
    name = os.fspath(image)
    try:
        return ImageSource(name, address_of(image))
    except OptionError:
        if not where or not isinstance(name, str):
            raise
        return ImageSource(name, name)


def from_bytes(image: Any, _: str) -> ImageSource | None:
    """The content of a file."""
    return ImageSource("<bytes>", bytes(image)) if isinstance(image, (bytes, bytearray, memoryview)) else None


def from_buffer(image: Any, _: str) -> ImageSource | None:
    """The content of a file in any other buffer of bytes: ``array.array("B")``, ``pyarrow.Buffer``."""
    return ImageSource("<bytes>", memoryview(image).tobytes()) if is_buffer(image) else None


def is_buffer(image: Any) -> bool:
    """Whether an object gives access to a row of bytes."""
    try:
        view = memoryview(image)
    except (TypeError, ValueError, BufferError):
        return False
    return view.ndim == 1 and view.itemsize == 1


def from_response(image: Any, _: str) -> ImageSource | None:
    """The body of an HTTP response of the library ``requests``, whose iterator would give pieces of it."""
    if not is_response(image):
        return None
    return ImageSource(str(getattr(image, "url", "<response>")), image.content)


def is_response(image: Any) -> bool:
    """Whether an object is a response of ``requests``."""
    return callable(getattr(image, "iter_content", None)) and isinstance(getattr(image, "content", None), bytes)


def from_pillow(image: Any, _: str) -> ImageSource | None:
    """A Pillow image."""
    return ImageSource("<image>", image) if isinstance(image, Image.Image) else None


def from_array(image: Any, where: str) -> ImageSource | None:
    """An array of one image.

    Raises:
        OptionError: its shape, dtype or range is not that of an image.
    """
    return ImageSource("<array>", pixels_of(image, where)) if isinstance(image, np.ndarray) else None


def from_file(image: Any, where: str) -> ImageSource | None:
    """An open file, read from its beginning.

    Raises:
        OptionError: it is opened as text, or cannot be read.
    """
    if not callable(getattr(image, "read", None)):
        return None
    return ImageSource(_file_name(image), _file_bytes(image, where))


def pixels_of(array: npt.NDArray[Any], where: str) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """(H, W) or (H, W, C) uint8; uint16 for floats of more precision and for uint16."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in CHANNELS) or not array.size:
        raise OptionError(
            f"{where}an array of shape {array.shape} is not an image: expected (H, W) or (H, W, 1, 3 or 4)."
        )
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype in (np.uint8, np.uint16):
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind != "f":
        raise OptionError(
            f"{where}an array of {array.dtype} has no defined white: expected uint8, uint16, bool, or floats in [0, 1]."
        )
    return _from_floats(array, where)


def _from_floats(array: npt.NDArray[Any], where: str) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    if not np.isfinite(array).all():
        raise OptionError(f"{where}an array with values that are not finite (NaN or infinity) is not an image.")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):
        raise OptionError(
            f"{where}floats from {low:g} to {high:g}: expected [0, 1]. Divide by the value of white, such as 255."
        )
    if array.dtype == np.float16:  # has 11 significant bits at most
        return np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    return np.rint(array.astype(np.float64) * UINT16_MAX).astype(np.uint16)


def _file_name(file: Any) -> str:
    name = getattr(file, "name", None) or getattr(file, "filename", None)
    return os.fspath(name) if isinstance(name, (str, Path)) else "<file>"


def _file_bytes(file: Any, where: str) -> bytes:
    if inspect.iscoroutinefunction(file.read):  # an upload of Starlette or FastAPI
        file = getattr(file, "file", file)
    if inspect.iscoroutinefunction(file.read):
        raise OptionError(f"{where}{type(file).__name__}: its read() is a coroutine; await it and pass the bytes.")
    try:
        if callable(getattr(file, "seek", None)) and getattr(file, "seekable", lambda: True)():
            file.seek(0)
        data = file.read()
    except UnicodeDecodeError as error:
        raise OptionError(f'{where}{_file_name(file)}: opened as text; open it with mode "rb".') from error
    except (OSError, ValueError) as error:  # closed, or opened for writing
        raise OptionError(f"{where}{_file_name(file)}: cannot be read ({error}).") from error
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise OptionError(f'{where}{_file_name(file)}: opened as text; open it with mode "rb".')
    return bytes(data)


READERS = (from_source, from_bytes, from_pillow, from_array, from_response, from_file, from_buffer)
"""Forms of a single image that need nothing but Pillow and NumPy; the first that does not return None is used."""
