"""Data set index: paths, labels, classes, given splits and groups, read from folders, tables, archives and shards.

Images are not opened here (``scan`` does that). What was ignored is reported in ``Dataset.findings``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from headstart.data.class_folders import listed as listed_names
from headstart.data.decode import thumbnail
from headstart.data.finding import Finding
from headstart.data.image_table import SPLITS, ImageTable, TableRow
from headstart.data.label_cells import join_labels
from headstart.data.listing import Listing, list_folder, list_source, list_table
from headstart.data.natural_order import natural_place
from headstart.data.sources.addresses import join, title_of, user_address
from headstart.data.table_columns import Columns
from headstart.html import image_element, paragraph, table

SHOWN_CLASSES, SHOWN_IMAGES, SHOWN_SIDE = 12, 4, 96
"""In notebooks: classes shown, images of each, and side of a thumbnail in pixels."""


@dataclass(frozen=True)
class Dataset:
    """N labelled images.

    Attributes:
        root: path or URL of the folder, table or archive, or the pattern of shards, as given.
        base: absolute path or URL of the folder, or of the folder of the table or archive.
        paths: N paths, relative to ``base``, in natural order within class and split; ``CONTAINER::MEMBER`` for an
            image in an archive or in a table.
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

    root: str
    base: str
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
        return f"Dataset({self.root!r}: {len(self.classes)} {kind}, {len(self):,} images, {given})"

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
        """N addresses: absolute paths, URLs, or ``CONTAINER::MEMBER``."""
        return [join(self.base, path) for path in self.paths]

    @property
    def name(self) -> str:
        """A short name: that of the folder, table or archive, or of the folder of shards."""
        return title_of(self.root)

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
    """Opens labelled images: a folder, a table, an archive or shards, on this machine or by URL.

    - A folder with a folder of images per class (``open_folder``), or a zip or tar file of one.
    - A table (``open_table``): CSV or TSV with a column of paths, URLs or ``ARCHIVE::MEMBER``; Parquet or Arrow, also
      with the images in a column.
    - A tar file of WebDataset samples: images with a label beside them in a ``.cls``, ``.txt`` or ``.json`` file.
    - Shards: a folder, or a pattern such as ``"shards/train-*.tar"``, of tar, Parquet or Arrow files. If their names
      start with train, val or test, these are the splits.
    - Any source above at ``s3://``, ``gs://`` or ``hf://datasets/``; single files and tables of URLs at ``https://``.

    Args:
        source: path, pattern or URL; an opened data set is returned unchanged.
        min_classes: minimum number of classes; extending a model needs one.
        path_column: the table's column of paths or images; "": found by name (see ``open_table``).
        label_column: its column of labels, likewise.
        split_column: its column of splits, likewise.
        group_column: its column of groups, likewise.

    Returns:
        The data set; no image has been opened.

    Raises:
        DataError: the data do not exist or cannot be used; the message says what was found and expected.
        SourceError: their storage cannot be reached.
        MissingExtra: their storage or format needs a library that is not installed.
        OptionError: columns are given for data without a table.

    Examples:
        >>> hs.open_data("flowers/")
        Dataset('flowers': 2 classes, 50 images, no given splits)
        >>> hs.open_data("plants.csv", path_column="Datei", label_column="Art").classes
        ('roses', 'tulips')
    """
    if isinstance(source, Dataset):
        return source
    columns = Columns(path_column, label_column, split_column, group_column)
    return _dataset(list_source(source, columns, min_classes=min_classes), columns)


def open_folder(folder: str | os.PathLike[str], *, min_classes: int = 2) -> Dataset:
    """Indexes a folder with one subfolder per class, or with train / val / test folders of class folders.

    Class folders are searched recursively. Hidden files and folders, other files, camera raw files and empty class
    folders are ignored and reported in ``findings``.

    Args:
        folder: path or URL of the folder.
        min_classes: minimum number of classes.

    Raises:
        DataError: the folder does not exist, has no images or too few classes, or mixes split and class folders.
        SourceError: its storage cannot be reached.
    """
    return _dataset(list_folder(user_address(folder), min_classes=min_classes), Columns())


def open_table(
    table: str | os.PathLike[str],
    *,
    min_classes: int = 2,
    path_column: str = "",
    label_column: str = "",
    split_column: str = "",
    group_column: str = "",
) -> Dataset:
    """Indexes a CSV, TSV, Parquet or Arrow table with a row per image: path, labels, and optionally split and group.

    Columns that are not named are found by usual names (see ``table.read_table``). Relative paths start at the table's
    folder; a path may also be a URL or a member of an archive, ``shard.tar::a/b.jpg``. Parquet and Arrow tables may
    hold the images: a column of bytes, or of Hugging Face's struct of bytes and path. Rows without path, label or split
    (if the table has that column) are reported in ``findings``. A run's ``split.csv`` is such a table.

    Args:
        table: path or URL of the file.
        path_column: name of the column of paths or images.
        label_column: name of the column of labels; several labels of an image are separated by "|".
        split_column: name of the column of splits: train, val or test.
        group_column: name of the column of groups; a group stays in one split.
        min_classes: minimum number of classes; multi-label data need one label.

    Raises:
        DataError: the file or a column is missing, a split is unknown, a path has two labels, or there are too few
            classes.
        SourceError: its storage cannot be reached.
    """
    columns = Columns(path_column, label_column, split_column, group_column)
    return _dataset(list_table(user_address(table), columns, min_classes=min_classes), columns)


def _dataset(listed: Listing, columns: Columns) -> Dataset:
    """The data set of listed images, ordered by split, class and path."""
    listing, classes = listed.table, listed.table.classes
    number = {name: index for index, name in enumerate(classes)}

    def position(row: TableRow) -> tuple[int, int, tuple[str, str]]:
        split = SPLITS.index(row.split) if listing.has_splits else 0
        return split, 0 if listing.is_multi_label else number[row.labels[0]], natural_place(row.path)

    rows = sorted(listing.rows, key=position)
    if listing.is_multi_label:
        labels = np.zeros((len(rows), len(classes)), dtype=np.int64)
        for i, row in enumerate(rows):
            labels[i, [number[name] for name in row.labels]] = 1
    else:
        labels = np.array([number[row.labels[0]] for row in rows], dtype=np.int64)
    return Dataset(
        root=listed.root,
        base=listed.base,
        paths=tuple(row.path for row in rows),
        labels=labels,
        classes=classes,
        splits=tuple(row.split for row in rows) if listing.has_splits else None,
        groups=tuple(row.group for row in rows) if listing.has_groups else None,
        findings=(*listing.findings, *listing.spellings.findings(), *_missing_classes(listing)),
        columns=columns,
    )


def _missing_classes(listing: ImageTable) -> list[Finding]:
    if not listing.has_splits:
        return []
    present = {(row.split, name) for row in listing.rows for name in row.labels}
    splits = {row.split for row in listing.rows}
    return [
        Finding("split-without-class", "note", f"{split}: no image of class {listed_names(missing)}")
        for split in SPLITS
        if split in splits and (missing := [name for name in listing.classes if (split, name) not in present])
    ]
