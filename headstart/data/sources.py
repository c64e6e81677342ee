"""Where image bytes come from: everything that predictions accept as an image, or as several."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from headstart.data.dataset import Dataset, find_images
from headstart.data.table import PATH_COLUMNS
from headstart.errors import DataError, OptionError
from headstart.files import user_path

OneImage = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | npt.NDArray[Any] | torch.Tensor
)
"""One image in memory or on disk; see ``ACCEPTED``."""

Picture = OneImage | Any
"""One image: other objects that read like a file are welcome as well."""

ACCEPTED = (
    "a path; a file's bytes; an open binary file; a Pillow image; an array of shape (H, W) or (H, W, 1, 3 or 4), of "
    "uint8, uint16, bool, or floats in [0, 1]; a torch tensor (C, H, W) or (H, W, C); a folder; a table with a column "
    "of paths; or a list of these"
)

CHANNELS = (1, 3, 4)
UINT16_MAX = 65535


@dataclass(frozen=True)
class ImageSource:
    """One image to decode.

    Attributes:
        name: its path as it was given, the name of an open file, or "<bytes>", "<image>", "<array>", "<tensor>".
        content: path, bytes of a file, Pillow image, or (H, W) or (H, W, C) array of uint8 or uint16.
    """

    name: str
    content: str | bytes | Image.Image | npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


def read_sources(images: object) -> tuple[list[ImageSource], bool]:
    """Images in any form that has a plain meaning.

    A folder stands for the images in it, in natural order; a frame of pandas, polars or pyarrow for those in its
    column of paths (``table.PATH_COLUMNS``). Open files are read from their beginning where they can be rewound.

    Args:
        images: one image or several, see ``ACCEPTED``.

    Returns:
        The images, and whether one was given rather than several.

    Raises:
        OptionError: it is none of these; says what is accepted, and which entry of a list is wrong.
        DataError: a single path does not exist, or a folder holds no image.
    """
    several = _several(images)
    if several is not None:
        return [source for place, own in enumerate(several) for source in _entries(own, f"image {place}: ")], False
    if isinstance(images, (str, os.PathLike)):
        path = user_path(images)
        if path.is_dir():
            return [ImageSource(name, name) for name in find_images(path)], False
        if not path.exists():
            raise DataError(f"{os.fspath(images)}: no such file or folder.")
    return [read_source(images)], True


def read_source(image: Picture, where: str = "") -> ImageSource:
    """One image.

    Args:
        image: see ``ACCEPTED``.
        where: begins the message of an error.

    Raises:
        OptionError: it is none of these.
    """
    if isinstance(image, ImageSource):
        return image
    if isinstance(image, (str, os.PathLike)):
        return ImageSource(os.fspath(image), os.fspath(user_path(image)))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return ImageSource("<bytes>", bytes(image))
    if isinstance(image, Image.Image):
        return ImageSource("<image>", image)
    if isinstance(image, np.ndarray):
        return ImageSource("<array>", _pixels(image, where))
    if isinstance(image, torch.Tensor):
        return ImageSource("<tensor>", _pixels(_from_tensor(image, where), where))
    if callable(getattr(image, "read", None)):
        return ImageSource(_file_name(image), _file_bytes(image, where))
    raise OptionError(f"{where}{type(image).__name__} is no image. Accepted: {ACCEPTED}.")


def _several(images: object) -> Iterable[object] | None:
    """The entries where there are several; None where it is a single image, or no image at all."""
    if isinstance(images, Dataset):
        return images.files()
    if isinstance(images, dict):
        raise OptionError(f"dict is no image. Accepted: {ACCEPTED}.")
    if (column := _paths_in(images)) is not None:
        return column
    if isinstance(images, np.ndarray) and images.ndim:
        if images.dtype.kind in "OUS":
            return cast(Iterable[object], images.ravel().tolist())
        return images if images.ndim == 4 else None
    if isinstance(images, torch.Tensor):
        return cast(Iterable[object], images) if images.ndim == 4 else None
    is_one = isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, ImageSource, np.ndarray))
    if is_one or hasattr(images, "read") or not isinstance(images, Iterable):
        return None
    return images


def _entries(image: object, where: str) -> list[ImageSource]:
    if isinstance(image, (str, os.PathLike)) and (path := user_path(image)).is_dir():
        return [ImageSource(name, name) for name in find_images(path)]
    return [read_source(image, where)]


def _paths_in(images: object) -> list[object] | None:
    """Of a frame, its column of paths; of a column, its entries; None of anything else."""
    library = type(images).__module__.partition(".")[0]
    if library not in ("pandas", "polars", "pyarrow"):
        return None
    frame: Any = images
    names = getattr(frame, "column_names", None)
    if names is None:
        names = getattr(frame, "columns", None)
    if names is None or callable(names):  # a column
        values = frame.to_pylist() if hasattr(frame, "to_pylist") else getattr(frame, "to_list", lambda: None)()
        return cast("list[object] | None", values)
    known = {str(name).strip().lower(): name for name in names}
    found = next((known[name] for name in PATH_COLUMNS if name in known), None)
    if found is None:
        raise OptionError(
            f"a table without a column of paths ({', '.join(PATH_COLUMNS)}); it has {', '.join(map(str, names))}."
        )
    return _paths_in(frame[found])


def _from_tensor(tensor: torch.Tensor, where: str) -> npt.NDArray[Any]:
    """(C, H, W) where the first axis is one of channels, else (H, W, C) or (H, W) as it is."""
    tensor = tensor.detach().cpu()
    if tensor.dtype.is_floating_point:
        tensor = tensor.float()
    try:
        array: npt.NDArray[Any] = tensor.numpy()
    except (TypeError, RuntimeError) as error:  # sparse, quantised
        raise OptionError(f"{where}a tensor of {tensor.dtype} and {tensor.layout} is no image.") from error
    return np.moveaxis(array, 0, -1) if array.ndim == 3 and array.shape[0] in CHANNELS else array


def _pixels(array: npt.NDArray[Any], where: str) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """(H, W) or (H, W, C) uint8, or uint16 where there was more."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in CHANNELS) or not array.size:
        raise OptionError(f"{where}an array of shape {array.shape} is no image: expected (H, W) or (H, W, 1, 3 or 4).")
    if array.dtype in (np.uint8, np.uint16):
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind != "f":
        raise OptionError(
            f"{where}an array of {array.dtype} has no agreed white: expected uint8, uint16, bool, or floats in [0, 1]."
        )
    if not np.isfinite(array).all():
        raise OptionError(f"{where}an array with values that are not finite (NaN or infinity) is no image.")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):
        raise OptionError(f"{where}floats from {low:g} to {high:g}: expected [0, 1]. Divide by the value of white.")
    if array.dtype == np.float16:  # has no more than 11 bits
        return np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    return np.rint(array.astype(np.float64) * UINT16_MAX).astype(np.uint16)


def _file_name(file: Any) -> str:
    name = getattr(file, "name", None) or getattr(file, "filename", None)
    return os.fspath(name) if isinstance(name, (str, Path)) else "<file>"


def _file_bytes(file: Any, where: str) -> bytes:
    if inspect.iscoroutinefunction(file.read):  # an upload of Starlette or FastAPI
        file = getattr(file, "file", file)
    if inspect.iscoroutinefunction(file.read):
        raise OptionError(f"{where}{type(file).__name__}: its read() has to be awaited; hand over the bytes.")
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
