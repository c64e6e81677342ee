"""Image inputs: everything that predictions accept as an image, or as several images.

A new way to get images is a function here and a line in ``READERS`` (one image) or ``COLLECTIONS`` (several).
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from headstart.data.dataset import Dataset
from headstart.data.listing import find_images, is_source
from headstart.data.sources.addresses import is_url, split_address, user_address
from headstart.data.table_columns import PATH_COLUMNS
from headstart.errors import DataError, OptionError

OneImage = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | npt.NDArray[Any] | torch.Tensor
)
"""One image in memory or on disk; see ``ACCEPTED``."""

ImageLike = OneImage | Any
"""One image, also as any other object that reads like a file."""

ACCEPTED = (
    "a path or URL; a file's bytes; an open binary file; a Pillow image; an array of shape (H, W) or (H, W, 1, 3 or 4) "
    "of uint8, uint16, bool, or floats in [0, 1]; a torch tensor (C, H, W) or (H, W, C); a folder, an archive or a "
    "table of images; a data frame with a column of paths; or a list of these"
)

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


Reader = Callable[[Any, str], ImageSource | None]
"""(object, prefix of error messages) -> the image; None if the object is of another kind."""

Collection = Callable[[Any], Iterable[object] | None]
"""Object -> its images; None if the object is of another kind."""


def read_sources(images: object) -> tuple[list[ImageSource], bool]:
    """Reads one image or several, in any accepted form.

    A folder, archive, table or pattern gives the images in it, in natural order; a pandas, polars or pyarrow table
    those in its column of paths (``table.PATH_COLUMNS``). Open files are read from the start if they are seekable.

    Args:
        images: see ``ACCEPTED``.

    Returns:
        The images, and whether a single image was given.

    Raises:
        OptionError: the type is not accepted; the message lists the accepted types and names the wrong entry of a list.
        DataError: a single path does not exist, or a folder, archive or table has no images.
        SourceError: the storage of a folder, archive or table cannot be reached.
    """
    collection = _collection(images)
    if collection is not None:
        return [one for place, entry in enumerate(collection) for one in _entries(entry, f"image {place}: ")], False
    if isinstance(images, (str, os.PathLike)):
        if is_source(images):
            return [ImageSource(name, name) for name in find_images(images)], False
        address = user_address(images)
        if not is_url(address) and not os.path.exists(split_address(address)[0]):
            raise DataError(f"{os.fspath(images)}: no such file or folder.")
    return [read_source(images)], True


def read_source(image: ImageLike, where: str = "") -> ImageSource:
    """Reads one image.

    Args:
        image: see ``ACCEPTED``.
        where: prefix of error messages.

    Raises:
        OptionError: not an accepted form.
    """
    for read in READERS:
        if (source := read(image, where)) is not None:
            return source
    raise OptionError(f"{where}{type(image).__name__} is not an image. Accepted: {ACCEPTED}.")


def _source(image: Any, _: str) -> ImageSource | None:
    return image if isinstance(image, ImageSource) else None


def _path(image: Any, _: str) -> ImageSource | None:
    if not isinstance(image, (str, os.PathLike)):
        return None
    return ImageSource(os.fspath(image), user_address(image))


def _bytes(image: Any, _: str) -> ImageSource | None:
    return ImageSource("<bytes>", bytes(image)) if isinstance(image, (bytes, bytearray, memoryview)) else None


def _pillow(image: Any, _: str) -> ImageSource | None:
    return ImageSource("<image>", image) if isinstance(image, Image.Image) else None


def _array(image: Any, where: str) -> ImageSource | None:
    return ImageSource("<array>", _pixels(image, where)) if isinstance(image, np.ndarray) else None


def _tensor(image: Any, where: str) -> ImageSource | None:
    if not isinstance(image, torch.Tensor):
        return None
    return ImageSource("<tensor>", _pixels(_from_tensor(image, where), where))


def _file(image: Any, where: str) -> ImageSource | None:
    if not callable(getattr(image, "read", None)):
        return None
    return ImageSource(_file_name(image), _file_bytes(image, where))


READERS: tuple[Reader, ...] = (_source, _path, _bytes, _pillow, _array, _tensor, _file)
"""Registry of forms of a single image; the first that does not return None is used."""


def _collection(images: object) -> Iterable[object] | None:
    """The images of a collection; None for a single image, and for anything else."""
    if isinstance(images, dict):
        raise OptionError(f"dict is not an image. Accepted: {ACCEPTED}.")
    for read in COLLECTIONS:
        if (found := read(images)) is not None:
            return found
    return None


def _dataset(images: Any) -> Iterable[object] | None:
    return images.files() if isinstance(images, Dataset) else None


def _table(images: Any) -> Iterable[object] | None:
    """The column of paths of a pandas, polars or pyarrow table, or the entries of a column."""
    library = type(images).__module__.partition(".")[0]
    if library not in ("pandas", "polars", "pyarrow"):
        return None
    names = getattr(images, "column_names", None)
    if names is None:
        names = getattr(images, "columns", None)
    if names is None or callable(names):  # a column
        values = images.to_pylist() if hasattr(images, "to_pylist") else getattr(images, "to_list", lambda: None)()
        return cast("list[object] | None", values)
    by_name = {str(name).strip().lower(): name for name in names}
    column = next((by_name[name] for name in PATH_COLUMNS if name in by_name), None)
    if column is None:
        raise OptionError(
            f"a table without a column of paths ({', '.join(PATH_COLUMNS)}); it has {', '.join(map(str, names))}."
        )
    return _table(images[column])


def _array_of_images(images: Any) -> Iterable[object] | None:
    """The images of a 4-d array or tensor, or the entries of an array of paths."""
    if isinstance(images, np.ndarray) and images.ndim:
        if images.dtype.kind in "OUS":
            return cast(Iterable[object], images.ravel().tolist())
        return images if images.ndim == 4 else None
    return cast(Iterable[object], images) if isinstance(images, torch.Tensor) and images.ndim == 4 else None


def _iterable(images: Any) -> Iterable[object] | None:
    """The entries of a list or any other iterable that is not an image itself."""
    single = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, ImageSource, np.ndarray, torch.Tensor)
    if isinstance(images, single) or hasattr(images, "read") or not isinstance(images, Iterable):
        return None
    return images


COLLECTIONS: tuple[Collection, ...] = (_dataset, _table, _array_of_images, _iterable)
"""Registry of forms of several images; the first that does not return None is used."""


def _entries(image: object, where: str) -> list[ImageSource]:
    """The images of one entry of a collection: a folder may have several."""
    if isinstance(image, (str, os.PathLike)) and is_source(image):
        return [ImageSource(name, name) for name in find_images(image)]
    return [read_source(image, where)]


def _from_tensor(tensor: torch.Tensor, where: str) -> npt.NDArray[Any]:
    """(C, H, W) becomes (H, W, C) if the first axis has 1, 3 or 4 entries; other shapes stay."""
    tensor = tensor.detach().cpu()
    if tensor.dtype.is_floating_point:
        tensor = tensor.float()
    try:
        array: npt.NDArray[Any] = tensor.numpy()
    except (TypeError, RuntimeError) as error:  # sparse, quantised
        raise OptionError(f"{where}a tensor of {tensor.dtype} and {tensor.layout} is not an image.") from error
    return np.moveaxis(array, 0, -1) if array.ndim == 3 and array.shape[0] in CHANNELS else array


def _pixels(array: npt.NDArray[Any], where: str) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """(H, W) or (H, W, C) uint8; uint16 for floats of more precision and for uint16."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in CHANNELS) or not array.size:
        raise OptionError(
            f"{where}an array of shape {array.shape} is not an image: expected (H, W) or (H, W, 1, 3 or 4)."
        )
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
