"""The index of a data set: paths, class names, given splits and groups, read from names alone.

No image is opened here (``scan`` does that). What was seen and not used is told in ``Dataset.findings``.
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
from headstart.data.table import SPLIT_NAMES, Columns, Spellings, join_labels, read_table
from headstart.data.table_file import TABLE_SUFFIXES
from headstart.errors import DataError, OptionError
from headstart.files import UserPath, user_path
from headstart.html import paragraph, picture, table

SPLITS: Final = ("train", "val", "test")

SHOWN_CLASSES, SHOWN_IMAGES, SHOWN_SIDE = 12, 4, 96
"""Classes, pictures of each, and pixels of their side, where a notebook shows a data set."""


@dataclass(frozen=True)
class Dataset:
    """N labelled images.

    Attributes:
        root: the folder, or the table's file, as it was named.
        base: the folder, or the table's folder, absolute.
        paths: N paths, relative to ``base``, in natural order within class and split.
        labels: (N,) int64, indices into ``classes``; or, where an image may bear any number of labels, (N, classes)
            int64, 1 for each that it bears and 0 for the others.
        classes: class names in natural order ("2" before "10").
        splits: N of "train", "val", "test" as the data gives them; None where it gives none.
        groups: N names of groups that must stay on one side of a split, "" for none; None where there are no groups.
        findings: what was found and not used, or was not read as it stands there.
        columns: of the table, as they were chosen.
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
        """The findings, a sentence each."""
        return tuple(finding.message for finding in self.findings)

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        given = "/".join(s for s in SPLITS if self.splits and s in self.splits) or "no given splits"
        kind = "labels" if self.multi_label else "classes"
        return f"Dataset({str(self.root)!r}: {len(self.classes)} {kind}, {len(self):,} images, {given})"

    def _repr_html_(self) -> str:
        """For a notebook: images by class and split, and the first pictures of each class."""
        splits: list[str] = [s for s in SPLITS if s in (self.splits or ())]
        files, of = self.files(), np.array(self.splits or [""] * len(self))
        rows, shown = [], []
        for number, name in enumerate(self.classes[:SHOWN_CLASSES]):
            bears = self.has_label(number)
            rows.append([name, *(f"{int((bears & (of == split)).sum()):,}" for split in splits or [""])])
            own = [files[i] for i in bears.nonzero()[0][:SHOWN_IMAGES]]
            addresses = [address for path in own if (address := thumbnail(path, SHOWN_SIDE))]
            shown.append(paragraph(name) + "".join(picture(address, name) for address in addresses))
        parts = [paragraph(repr(self), strong=True), table(["class", *(splits or ["images"])], rows)]
        if len(self.classes) > SHOWN_CLASSES:
            parts.append(paragraph(f"and {len(self.classes) - SHOWN_CLASSES:,} classes more"))
        return "".join([*parts, *shown, *map(paragraph, self.notes[:SHOWN_CLASSES])])

    def files(self) -> list[str]:
        """N absolute paths."""
        return [os.path.join(self.base, path) for path in self.paths]

    @property
    def multi_label(self) -> bool:
        """Whether an image may bear any number of labels."""
        return self.labels.ndim == 2

    def has_label(self, number: int) -> npt.NDArray[np.bool_]:
        """(N,) bool: which images bear the label of that number."""
        return self.labels[:, number] > 0 if self.multi_label else self.labels == number

    def label_indices(self) -> list[list[int]]:
        """N lists of the numbers of an image's labels: one each, or any number."""
        return [own.nonzero()[0].tolist() for own in self.labels] if self.multi_label else self.labels[:, None].tolist()

    def label_names(self) -> list[str]:
        """N class names; of several labels to an image, a cell each of a table's column of labels."""
        names = [[self.classes[i] for i in own] for own in self.label_indices()]
        return join_labels(names) if self.multi_label else [own[0] for own in names]


def open_data(
    source: str | os.PathLike[str] | Dataset,
    *,
    min_classes: int = 2,
    path_column: str = "",
    label_column: str = "",
    split_column: str = "",
    group_column: str = "",
) -> Dataset:
    """Opens a folder or a table, whichever ``source`` is.

    Args:
        source: a folder, a table, or a data set that is open already.
        min_classes: that are asked for; one is enough to extend a model.
        path_column: the table's column of paths; by the usual names where it is "" (see ``open_table``).
        label_column: its column of labels, likewise.
        split_column: its column of splits, likewise.
        group_column: its column of groups, likewise.

    Raises:
        DataError: there is no such folder or table, or it cannot be used; says what was found and expected.
        OptionError: columns are named for something that is no table.
    """
    if isinstance(source, Dataset):
        return source
    path = user_path(source)
    columns = Columns(path_column, label_column, split_column, group_column).as_options()
    if path.is_dir():
        if columns:
            raise OptionError(f"{next(iter(columns))}: belongs to a table, and {path} is a folder.")
        return open_folder(path, min_classes=min_classes)
    if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        return open_table(path, min_classes=min_classes, **columns)
    if path.is_file():
        raise DataError(f"{path}: expected a folder of images, or a table ending in {', '.join(TABLE_SUFFIXES)}.")
    raise DataError(f"{path}: no such folder or table.")


def open_folder(folder: str | os.PathLike[str], *, min_classes: int = 2) -> Dataset:
    """Indexes a folder with one folder per class, or with train / val / test folders above the class folders.

    Class folders are searched in depth. Hidden files and folders, files that are no images, and empty class folders
    are told in ``findings`` and are not classes; so are camera raw files.

    Raises:
        DataError: no such folder, no images in it, fewer than two classes, or splits and classes side by side.
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
            f"{root}: split folders ({', '.join(named_split)}) stand beside other folders ({_some(others)}). Move the "
            "others elsewhere, or put every class folder under a split folder."
        )
    _note_strays(root, "", top, notes)
    findings = [*_raw_finding(found.camera_raw), *(Finding("unused-files", "note", note) for note in notes)]
    if not rows:
        seen = [finding.message for finding in findings]
        raise DataError(
            f"{root}: no images found. Expected one folder per class with images in it, for example "
            f"{root.name}/cat/1.jpg." + (f" Found: {_some(seen)}" if seen else "")
        )
    return _dataset(
        root,
        root,
        paths=[row[0] for row in rows],
        labels=[(row[1],) for row in rows],
        classes=tuple(natsorted({row[1] for row in rows})),
        splits=[row[2] for row in rows] if has_splits else None,
        groups=None,
        findings=findings,
        spellings=found.spellings,
        min_classes=min_classes,
    )


def open_table(
    table: str | os.PathLike[str],
    *,
    min_classes: int = 2,
    path_column: str = "",
    label_column: str = "",
    split_column: str = "",
    group_column: str = "",
) -> Dataset:
    """Indexes a CSV, TSV or Parquet table: in each row a path, one label or any number, perhaps a split and a group.

    ``table.read_table`` says by which names its columns go where they are not named here. Relative paths start at the
    table's folder. Rows without a path, a label or (where the table has the column) a split are told in ``findings``.
    The ``split.csv`` of a run is such a table.

    Args:
        table: the file.
        path_column: name of the column of paths.
        label_column: of labels: one to an image, or any number with "|" between them.
        split_column: of train, val or test.
        group_column: of names of groups that must stay on one side of a split.
        min_classes: that are asked for, where each image has one; of several to an image, one label will do.

    Raises:
        DataError: no such file, columns missing, a split that is not known, one path with two labels, or too few
            classes.
    """
    file = user_path(table)
    columns = Columns(path_column, label_column, split_column, group_column)
    read = read_table(file, columns)
    return _dataset(
        file,
        file.parent,
        paths=[row.path for row in read.rows],
        labels=[row.labels for row in read.rows],
        classes=read.classes,
        several=read.several,
        splits=[row.split for row in read.rows] if read.has_splits else None,
        groups=[row.group for row in read.rows] if read.has_groups else None,
        findings=read.findings,
        spellings=read.spellings,
        columns=columns,
        min_classes=1 if read.several else min_classes,
    )


def _dataset(
    root: Path,
    base: Path,
    *,
    paths: list[str],
    labels: list[tuple[str, ...]],
    classes: tuple[str, ...],
    several: bool = False,
    splits: list[str] | None,
    groups: list[str] | None,
    findings: Iterable[Finding],
    spellings: Spellings,
    columns: Columns | None = None,
    min_classes: int,
) -> Dataset:
    if len(classes) < min_classes:
        if not classes:
            raise DataError(f"{root}: no labelled images found.")
        deeper = _deeper(base, classes[0]) if base == root else ""
        raise DataError(f"{root}: found one class, {_some(classes)}; a classifier needs at least two.{deeper}")
    number = {name: index for index, name in enumerate(classes)}
    rank = {path: place for place, path in enumerate(natsorted(paths))}

    def place(i: int) -> tuple[int, int, int]:
        return SPLITS.index(splits[i]) if splits else 0, 0 if several else number[labels[i][0]], rank[paths[i]]

    order = sorted(range(len(paths)), key=place)
    if several:
        numbers = np.zeros((len(paths), len(classes)), dtype=np.int64)
        for row, i in enumerate(order):
            numbers[row, [number[name] for name in labels[i]]] = 1
    else:
        numbers = np.array([number[labels[i][0]] for i in order], dtype=np.int64)
    return Dataset(
        root=root,
        base=Path(os.path.abspath(base)),
        paths=tuple(paths[i] for i in order),
        labels=numbers,
        classes=classes,
        splits=tuple(splits[i] for i in order) if splits else None,
        groups=tuple(groups[i] for i in order) if groups else None,
        findings=(*findings, *spellings.findings(), *_missing_classes(classes, labels, splits)),
        columns=columns or Columns(),
    )


@dataclass(frozen=True)
class _Found:
    """What is noticed while class folders are read.

    Attributes:
        spellings: of the folders' names.
        camera_raw: paths of camera raw files without a picture of the same name beside them.
    """

    spellings: Spellings
    camera_raw: list[str]


def _class_rows(root: Path, split: str, notes: list[str], found: _Found) -> list[tuple[str, str]]:
    """(path, class) of every image in the class folders below ``root/split``."""
    rows: list[tuple[str, str]] = []
    classes = _subfolders(root / split, notes if split else [])
    for name in classes:
        images, others = _images_below(root / split / name)
        inside = os.path.join(split, name)
        raw = _camera_raw(images, others)
        found.camera_raw.extend(os.path.join(inside, file) for file in raw)
        others = [file for file in others if file not in raw]
        if not images:
            notes.append(f"{inside}: no images in it; not a class")
        if others:
            notes.append(f"{inside}: {len(others)} other file(s) not used: {_some(others)}")
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
    """Image files and other visible files below a folder, in depth, relative to it, in natural order."""
    images: list[str] = []
    others: list[str] = []
    for path in walk_files(folder):
        (images if Path(path).suffix.lower() in SUFFIXES else others).append(path)
    return natsorted(images), natsorted(others)


def find_images(path: UserPath) -> list[str]:
    """The picture itself, or every picture below a folder, in natural order.

    A file is taken as it is, whatever its ending. Camera raw files without a picture of the same name beside them are
    listed too, so that they are named.

    Raises:
        DataError: a folder without pictures.
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
    """Camera raw files without a picture of the same name beside them, which cameras may write as well."""
    pictured = {os.path.splitext(name)[0] for name in images}
    return [
        name
        for name in others
        if os.path.splitext(name)[1].lower() in CAMERA_RAW and os.path.splitext(name)[0] not in pictured
    ]


def _raw_finding(paths: Sequence[str]) -> list[Finding]:
    if not paths:
        return []
    message = f"{len(paths):,} file(s) are not used: {RAW_REMEDY}"
    return [Finding("camera-raw", "warning", message, tuple(paths))]


def walk_files(folder: Path) -> Iterator[str]:
    """Every file below a folder that is not hidden, relative to it; links to folders are followed, loops are not."""
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
        notes.append(f"{where}: {len(images)} image(s) without a class folder; not used, they have no label")
    else:
        notes.append(f"{where}: {len(strays)} stray file(s) not used: {_some(natsorted(strays))}")


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is passed over."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir")


def _missing_classes(
    classes: Sequence[str], labels: Sequence[Sequence[str]], splits: Sequence[str] | None
) -> list[Finding]:
    if splits is None:
        return []
    present = {(split, name) for split, own in zip(splits, labels, strict=True) for name in own}
    return [
        Finding("split-without-class", "note", f"{split}: no image of class {_some(missing)}")
        for split in SPLITS
        if split in splits and (missing := [name for name in classes if (split, name) not in present])
    ]


def _deeper(root: Path, only: str) -> str:
    inner = root / only
    if inner.is_dir() and len(_subfolders(inner, [])) > 1:
        return f" Did you mean {inner}?"
    return ""


def _some(names: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit:,} more"
