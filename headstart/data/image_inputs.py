"""Image inputs: everything that predictions accept as an image, or as several images.

A new way to get images is a function here and a line in ``READERS`` (one image) or ``COLLECTIONS`` (several).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO, Union, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from headstart.data import image_source
from headstart.data.dataset import Dataset
from headstart.data.image_source import CHANNELS, ImageSource, from_path, is_one_image, pixels_of
from headstart.data.listing import find_images, is_source
from headstart.data.sources.addresses import is_url, split_address, user_address
from headstart.data.table_columns import PATH_COLUMNS
from headstart.errors import DataError, OptionError

if TYPE_CHECKING:
    import torch

OneImage = Union[
    str, os.PathLike[str], bytes, bytearray, memoryview, BinaryIO, Image.Image, npt.NDArray[Any], "torch.Tensor"
]
"""One image in memory or on disk; see ``ACCEPTED``."""

ImageLike = OneImage | Any
"""One image, also as any other object that reads like a file."""

ACCEPTED = (
    "a path or URL; a file's bytes; an open binary file or an HTTP response; a Pillow image; an array of shape (H, W) "
    "or (H, W, 1, 3 or 4) of uint8, uint16, bool, or floats in [0, 1]; a torch tensor (C, H, W) or (H, W, C); a "
    "folder, an archive or a table of images; a data frame with a column of paths; or a list of such images"
)

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


def _path(image: Any, where: str) -> ImageSource | None:
    is_remote = isinstance(image, str) and is_url(image)  # a URL without a bucket is an error of all
    return from_path(image, "" if is_remote else where, user_address)


def _is_tensor(image: Any) -> bool:
    """Whether it is a PyTorch tensor; no if nobody has imported PyTorch."""
    library = sys.modules.get("torch")
    return library is not None and isinstance(image, library.Tensor)


def _tensor(image: Any, where: str) -> ImageSource | None:
    if not _is_tensor(image):
        return None
    return ImageSource("<tensor>", pixels_of(_from_tensor(image, where), where))


READERS: tuple[Reader, ...] = (_path, _tensor, *image_source.READERS)
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
    columns = [str(name).strip().lower() for name in names]
    by_name = dict(zip(columns, names, strict=True))
    found = next((name for name in PATH_COLUMNS if name in by_name), None)
    if found is None:
        raise OptionError(
            f"a table without a column of paths ({', '.join(PATH_COLUMNS)}); it has {', '.join(map(str, names))}."
        )
    if columns.count(found) > 1:
        raise OptionError(f"a table with {columns.count(found)} columns named {found!r}. Pass the column of paths.")
    return _table(images[by_name[found]])


def _array_of_images(images: Any) -> Iterable[object] | None:
    """The images of a 4-d array or tensor, or the entries of an array of paths."""
    if isinstance(images, np.ndarray) and images.ndim:
        if images.dtype.kind in "OUS":
            return cast(Iterable[object], images.ravel().tolist())
        return images if images.ndim == 4 else None
    return cast(Iterable[object], images) if _is_tensor(images) and images.ndim == 4 else None


def _iterable(images: Any) -> Iterable[object] | None:
    """The entries of a list or any other iterable that is not an image itself."""
    return images if isinstance(images, Iterable) and not is_one_image(images) and not _is_tensor(images) else None


COLLECTIONS: tuple[Collection, ...] = (_dataset, _table, _array_of_images, _iterable)
"""Registry of forms of several images; the first that does not return None is used."""


def _entries(image: object, where: str) -> list[ImageSource]:
    """The images of one entry of a collection: a folder may have several."""
    if isinstance(image, (str, os.PathLike)):
        has_images = False
        with suppress(OptionError):  # no path: see ``from_path``
            has_images = is_source(image)
        if has_images:
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
