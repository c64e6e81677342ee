"""Data set index: paths, labels, classes, given splits and groups, read from a folder or a table.

Images are not opened here (``scan`` does that). What was ignored is reported in ``Dataset.findings``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from natsort import natsorted

from headstart.data.decode import thumbnail
from headstart.data.finding import Finding
from headstart.data.image_formats import CAMERA_RAW, RAW_REMEDY, SUFFIXES
from headstart.data.table import SPLIT_NAMES, Columns, ImageTable, Spellings, TableRow, join_labels, read_table
from headstart.data.table_file import TABLE_SUFFIXES
from headstart.errors import DataError, OptionError
from headstart.files import UserPath, user_path
from headstart.html import image_element, paragraph, table

SPLITS: Final = ("train", "val", "test")

SHOWN_CLASSES, SHOWN_IMAGES, SHOWN_SIDE = 12, 4, 96
"""In notebooks: classes shown, images of each, and side of a thumbnail in pixels."""


@dataclass(frozen=True)
class Dataset:
    """N labelled images.

    Attributes:
        root: the folder or table, as given.
        base: absolute path of the folder, or of the folder of the table; ``paths`` are relative to it.
        paths: N paths, relative to ``base``, in natural order within class and split.
        labels: (N,) int64, indices into ``classes``; or, for multi-label data, (N, classes) int64 of 0 and 1.
        classes: class names in natural order ("2" before "10").
        splits: N of "train", "val", "test", if given with the data; else None.
        groups: N names of groups that must stay in one split, "" for none; None without groups.
        findings: what was ignored, and what was read differently from how it is written.
        columns: chosen columns of the table.

    Examples:
        >>> dataset = hs.open_data("flowers/")
        >>> dataset.classes, len(dataset), dataset.paths[0]
        (('roses', 'tulips'), 50, 'roses/0.jpg')
    """

    root: Path
    base: Path
    paths: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    splits: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None
    findings: tuple[Finding, ...] = field(default=(), repr=False)
    columns: Columns = field(default_factory=Columns, repr=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages of the findings."""
        return tuple(finding.message for finding in self.findings)

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        given = "/".join(s for s in SPLITS if self.splits and s in self.splits) or "no given splits"
        kind = "labels" if self.multi_label else "classes"
        return f"Dataset({str(self.root)!r}: {len(self.classes)} {kind}, {len(self):,} images, {given})"

    def _repr_html_(self) -> str:
        """HTML for notebooks: images by class and split, and the first images of each class."""
        splits: list[str] = [s for s in SPLITS if s in (self.splits or ())]
        files, of = self.files(), np.array(self.splits or [""] * len(self))
        rows, shown = [], []
        for number, name in enumerate(self.classes[:SHOWN_CLASSES]):
            has_label = self.has_label(number)
            rows.append([name, *(f"{int((has_label & (of == split)).sum()):,}" for split in splits or [""])])
            paths = [files[i] for i in has_label.nonzero()[0][:SHOWN_IMAGES]]
            addresses = [address for path in paths if (address := thumbnail(path, SHOWN_SIDE))]
            shown.append(paragraph(name) + "".join(image_element(address, name) for address in addresses))
        parts = [paragraph(repr(self), strong=True), table(["class", *(splits or ["images"])], rows)]
        if len(self.classes) > SHOWN_CLASSES:
            parts.append(paragraph(f"and {len(self.classes) - SHOWN_CLASSES:,} more classes"))
        return "".join([*parts, *shown, *map(paragraph, self.notes[:SHOWN_CLASSES])])

    def files(self) -> list[str]:
        """N absolute paths."""
        return [os.path.join(self.base, path) for path in self.paths]

    @property
    def multi_label(self) -> bool:
        """Whether an image may have any number of labels."""
        return self.labels.ndim == 2

    def has_label(self, number: int) -> npt.NDArray[np.bool_]:
        """(N,) bool: which images have the label with this index."""
        return self.labels[:, number] > 0 if self.multi_label else self.labels == number

    def label_indices(self) -> list[list[int]]:
        """N lists of label indices; one entry each unless the data are multi-label."""
        return (
            [image_labels.nonzero()[0].tolist() for image_labels in self.labels]
            if self.multi_label
            else self.labels[:, None].tolist()
        )

    def label_names(self) -> list[str]:
        """N class names; for multi-label data, N cells for a table's column of labels."""
        names = [[self.classes[i] for i in indices] for indices in self.label_indices()]
        return join_labels(names) if self.multi_label else [image_names[0] for image_names in names]


def open_data(
    source: str | os.PathLike[str] | Dataset,
    *,
    min_classes: int = 2,
    path_column: str = "",
    label_column: str = "",
    split_column: str = "",
    group_column: str = "",
) -> Dataset:
    """Opens a folder or a table of labelled images.

    Args:
        source: a folder, a table, or an opened data set, which is returned unchanged.
        min_classes: minimum number of classes; extending a model needs one.
        path_column: the table's column of paths; "": found by name (see ``open_table``).
        label_column: its column of labels, likewise.
        split_column: its column of splits, likewise.
        group_column: its column of groups, likewise.

    Returns:
        The data set; no image has been opened.

    Raises:
        DataError: the folder or table does not exist or cannot be used; the message says what was found and expected.
        OptionError: columns are given for a folder.

    Examples:
        >>> hs.open_data("flowers/")
        Dataset('flowers': 2 classes, 50 images, no given splits)
        >>> hs.open_data("plants.csv", path_column="Datei", label_column="Art").classes
        ('roses', 'tulips')
    """
    if isinstance(source, Dataset):
        return source
    path = user_path(source)
    columns = Columns(path_column, label_column, split_column, group_column).as_options()
    if path.is_dir():
        if columns:
            raise OptionError(f"{next(iter(columns))}: applies only to a table, and {path} is a folder.")
        return open_folder(path, min_classes=min_classes)
    if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        return open_table(path, min_classes=min_classes, **columns)
    if path.is_file():
        raise DataError(f"{path}: expected a folder of images, or a table ending in {', '.join(TABLE_SUFFIXES)}.")
    raise DataError(f"{path}: no such folder or table.")


def open_folder(folder: str | os.PathLike[str], *, min_classes: int = 2) -> Dataset:
    """Indexes a folder with one subfolder per class, or with train / val / test folders of class folders.

    Class folders are searched recursively. Hidden files and folders, other files, camera raw files and empty class
    folders are ignored and reported in ``findings``.

    Args:
        folder: path of the folder.
        min_classes: minimum number of classes.

    Raises:
        DataError: the folder does not exist, has no images or too few classes, or mixes split and class folders.
    """
    root = user_path(folder)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder.")
    notes: list[str] = []
    found = _Found(Spellings(), [])
    top = _subfolders(root, notes)
    named_split = {name: SPLIT_NAMES[name.lower()] for name in top if name.lower() in SPLIT_NAMES}
    has_splits = bool(named_split) and any(_subfolders(root / name, []) for name in named_split)
    if not has_splits:
        rows = [(path, label, "") for path, label in _class_rows(root, "", notes, found)]
    elif len(named_split) == len(top):
        rows = [(*row, named_split[name]) for name in top for row in _class_rows(root, name, notes, found)]
    else:
        others = natsorted(set(top) - set(named_split))
        raise DataError(
            f"{root}: split folders ({', '.join(named_split)}) are next to other folders ({_some(others)}). Move the "
            "others elsewhere, or put every class folder into a split folder."
        )
    _note_strays(root, "", top, notes)
    findings = [*_raw_finding(found.camera_raw), *(Finding("unused-files", "note", note) for note in notes)]
    if not rows:
        seen = [finding.message for finding in findings]
        raise DataError(
            f"{root}: no images found. Expected one folder per class with images in it, for example "
            f"{root.name}/cat/1.jpg." + (f" Found: {_some(seen)}" if seen else "")
        )
    listing = ImageTable(
        rows=tuple(TableRow(path, (label,), split, "") for path, label, split in rows),
        classes=tuple(natsorted({label for _, label, _ in rows})),
        is_multi_label=False,
        has_splits=has_splits,
        has_groups=False,
        findings=tuple(findings),
        spellings=found.spellings,
    )
    return _dataset(root, root, listing, Columns(), min_classes=min_classes)


def open_table(
    table: str | os.PathLike[str],
    *,
    min_classes: int = 2,
    path_column: str = "",
    label_column: str = "",
    split_column: str = "",
    group_column: str = "",
) -> Dataset:
    """Indexes a CSV, TSV or Parquet table with a row per image: path, label or labels, and optionally split and group.

    Columns that are not named are found by usual names (see ``table.read_table``). Relative paths start at the table's
    folder. Rows without path, label or split (if the table has that column) are reported in ``findings``. A run's
    ``split.csv`` is such a table.

    Args:
        table: path of the file.
        path_column: name of the column of paths.
        label_column: name of the column of labels; several labels of an image are separated by "|".
        split_column: name of the column of splits: train, val or test.
        group_column: name of the column of groups; a group stays in one split.
        min_classes: minimum number of classes; multi-label data need one label.

    Raises:
        DataError: the file or a column is missing, a split is unknown, a path has two labels, or there are too few
            classes.
    """
    file = user_path(table)
    columns = Columns(path_column, label_column, split_column, group_column)
    listing = read_table(file, columns)
    return _dataset(file, file.parent, listing, columns, min_classes=1 if listing.is_multi_label else min_classes)


def _dataset(root: Path, base: Path, listing: ImageTable, columns: Columns, *, min_classes: int) -> Dataset:
    """The data set of listed images, ordered by split, class and path."""
    classes = listing.classes
    if len(classes) < min_classes:
        if not classes:
            raise DataError(f"{root}: no labelled images found.")
        deeper = _deeper(base, classes[0]) if base == root else ""
        raise DataError(f"{root}: found one class, {_some(classes)}; a classifier needs at least two.{deeper}")
    number = {name: index for index, name in enumerate(classes)}
    rank = {path: position for position, path in enumerate(natsorted(row.path for row in listing.rows))}

    def position(row: TableRow) -> tuple[int, int, int]:
        split = SPLITS.index(row.split) if listing.has_splits else 0
        return split, 0 if listing.is_multi_label else number[row.labels[0]], rank[row.path]

    rows = sorted(listing.rows, key=position)
    if listing.is_multi_label:
        labels = np.zeros((len(rows), len(classes)), dtype=np.int64)
        for i, row in enumerate(rows):
            labels[i, [number[name] for name in row.labels]] = 1
    else:
        labels = np.array([number[row.labels[0]] for row in rows], dtype=np.int64)
    return Dataset(
        root=root,
        base=Path(os.path.abspath(base)),
        paths=tuple(row.path for row in rows),
        labels=labels,
        classes=classes,
        splits=tuple(row.split for row in rows) if listing.has_splits else None,
        groups=tuple(row.group for row in rows) if listing.has_groups else None,
        findings=(*listing.findings, *listing.spellings.findings(), *_missing_classes(listing)),
        columns=columns,
    )


@dataclass(frozen=True)
class _Found:
    """Collected while class folders are read.

    Attributes:
        spellings: of the folders' names.
        camera_raw: paths of camera raw files without an image of the same name.
    """

    spellings: Spellings
    camera_raw: list[str]


def _class_rows(root: Path, split: str, notes: list[str], found: _Found) -> list[tuple[str, str]]:
    """(path, class) of every image in the class folders of ``root/split``."""
    rows: list[tuple[str, str]] = []
    classes = _subfolders(root / split, notes if split else [])
    for name in classes:
        images, others = _images_below(root / split / name)
        inside = os.path.join(split, name)
        raw = _camera_raw(images, others)
        found.camera_raw.extend(os.path.join(inside, file) for file in raw)
        others = [file for file in others if file not in raw]
        if not images:
            notes.append(f"{inside}: contains no images; not a class")
        if others:
            notes.append(f"{inside}: {len(others)} other file(s) ignored: {_some(others)}")
        if images:
            label = found.spellings.name(name)
            rows += [(os.path.join(inside, image), label) for image in images]
    if split:
        _note_strays(root, split, classes, notes)
    return rows


def _subfolders(folder: Path, notes: list[str]) -> list[str]:
    try:
        names = natsorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}.") from error
    hidden = [name for name in names if is_hidden(name)]
    notes += [f"{name}: hidden folder; not a class" for name in hidden]
    return [name for name in names if not is_hidden(name)]


def _images_below(folder: Path) -> tuple[list[str], list[str]]:
    """(image files, other files) below a folder, relative to it, in natural order; without hidden ones."""
    images: list[str] = []
    others: list[str] = []
    for path in walk_files(folder):
        (images if Path(path).suffix.lower() in SUFFIXES else others).append(path)
    return natsorted(images), natsorted(others)


def find_images(path: UserPath) -> list[str]:
    """The images of a folder in natural order, or the path of a single file.

    A single file may have any suffix. Camera raw files without an image of the same name are included, so that their
    predictions say why they cannot be read.

    Raises:
        DataError: the folder contains no images.
    """
    path = user_path(path)
    if not path.is_dir():
        return [os.fspath(path)]
    images, others = _images_below(path)
    found = natsorted([*images, *_camera_raw(images, others)])
    if not found:
        raise DataError(f"{path}: no images in this folder.")
    return [os.path.join(path, name) for name in found]


def _camera_raw(images: Sequence[str], others: Sequence[str]) -> list[str]:
    """Camera raw files without an image of the same name, which many cameras write next to them."""
    stems_of_images = {os.path.splitext(name)[0] for name in images}
    return [
        name
        for name in others
        if os.path.splitext(name)[1].lower() in CAMERA_RAW and os.path.splitext(name)[0] not in stems_of_images
    ]


def _raw_finding(paths: Sequence[str]) -> list[Finding]:
    if not paths:
        return []
    message = f"{len(paths):,} file(s) ignored: {RAW_REMEDY}"
    return [Finding("camera-raw", "warning", message, tuple(paths))]


def walk_files(folder: Path) -> Iterator[str]:
    """Every visible file below a folder, relative to it. Links to folders are followed, loops are not."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [name for name in folders if not is_hidden(name)] if real not in seen else []
        if real in seen:
            continue
        seen.add(real)
        for name in files:
            if not is_hidden(name):
                yield os.path.relpath(os.path.join(place, name), folder)


def _note_strays(root: Path, inside: str, folders: Iterable[str], notes: list[str]) -> None:
    strays = [entry.name for entry in os.scandir(root / inside) if entry.is_file() and not is_hidden(entry.name)]
    if not strays:
        return
    images = [name for name in strays if Path(name).suffix.lower() in SUFFIXES]
    where = inside or root.name
    if images and not any(True for _ in folders):
        notes.append(f"{where}: {len(images)} image(s) outside a class folder ignored: they have no label")
    else:
        notes.append(f"{where}: {len(strays)} file(s) outside the class folders ignored: {_some(natsorted(strays))}")


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is ignored."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir")


def _missing_classes(listing: ImageTable) -> list[Finding]:
    if not listing.has_splits:
        return []
    present = {(row.split, name) for row in listing.rows for name in row.labels}
    splits = {row.split for row in listing.rows}
    return [
        Finding("split-without-class", "note", f"{split}: no image of class {_some(missing)}")
        for split in SPLITS
        if split in splits and (missing := [name for name in listing.classes if (split, name) not in present])
    ]


def _deeper(root: Path, only: str) -> str:
    inner = root / only
    if inner.is_dir() and len(_subfolders(inner, [])) > 1:
        return f" Did you mean {inner}?"
    return ""


def _some(names: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit:,} more"
