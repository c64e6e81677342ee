"""Class folders: one folder of images per class, or train / val / test folders of class folders."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from natsort import natsorted

from headstart.data.file_tree import FileTree, NamesSeen, is_hidden, is_image_name, lone_camera_raw
from headstart.data.finding import Finding
from headstart.data.image_formats import RAW_REMEDY
from headstart.data.image_table import SPLIT_NAMES, ImageTable, KeepRows, Spellings, TableRow, in_memory
from headstart.errors import DataError, OptionError

MAX_LABEL_BYTES = 200
"""Maximum length of a label in bytes. File systems allow 255 for a folder name."""

JOINERS = ("\u200c", "\u200d")
"""Zero-width non-joiner and joiner, which change how the characters beside them are written."""

BLANK_LETTERS = ("\u034f", "\u115f", "\u1160", "\u2800", "\u3164", "\uffa0")
"""Characters that look empty although Unicode counts them as letters, marks or symbols."""

WINDOWS_FORBIDDEN = '<>:"|?*'
"""Characters that are not allowed in file names on Windows."""


@dataclass(frozen=True)
class _Found:
    """Collected while class folders are read.

    Attributes:
        root: address of the folder or archive, for messages.
        name: its last part.
        tree: its files.
        spellings: of the folders' names.
        camera_raw: paths of camera raw files without an image of the same name.
        notes: what is ignored.
        classes: labels of the images.
    """

    root: str
    name: str
    tree: FileTree
    spellings: Spellings = field(default_factory=Spellings)
    camera_raw: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)


def class_folders(tree: FileTree, root: str, name: str, *, inside: str = "", keep: KeepRows = in_memory) -> ImageTable:
    """The labelled images of class folders; the paths of its rows are relative to the tree.

    Args:
        tree: the files.
        root: address of the folder or archive, for messages.
        name: its last part.
        inside: folder of the tree with the class folders or split folders; "" for the top.
        keep: takes the rows, see ``image_table.KeepRows``.

    Raises:
        DataError: there are no images, or split folders next to class folders.
    """
    found = _Found(root, name, tree)
    top = _subfolders(found, inside)
    named_split = {name: SPLIT_NAMES[name.lower()] for name in top if name.lower() in SPLIT_NAMES}
    has_splits = bool(named_split) and any(visible_folders(tree, os.path.join(inside, name)) for name in named_split)
    if not has_splits:
        rows = keep(_rows_of(found, inside, visible_folders(tree, inside)), False)
    elif len(named_split) == len(top):
        of_split = (_split_rows(found, os.path.join(inside, name), named_split[name]) for name in top)
        rows = keep(chain.from_iterable(of_split), False)
    else:
        others = natsorted(set(top) - set(named_split))
        raise DataError(
            f"{root}: split folders ({', '.join(named_split)}) are next to other folders ({listed(others)}). Move the "
            "others elsewhere, or put every class folder into a split folder."
        )
    _note_strays(found, inside, top)
    findings = [*_raw_finding(found.camera_raw), *(Finding("unused-files", "note", note) for note in found.notes)]
    if not found.classes:
        seen = [finding.message for finding in findings]
        raise DataError(
            f"{root}: no images found. Expected one folder per class with images in it, for example "
            f"{name}/cat/1.jpg." + (f" Found: {listed(seen)}" if seen else "")
        )
    return ImageTable(
        rows=rows,
        classes=tuple(natsorted(found.classes)),
        is_multi_label=False,
        has_splits=has_splits,
        has_groups=False,
        findings=tuple(findings),
        spellings=found.spellings,
    )


def class_name(written: object) -> str:
    """The name of a class in Unicode's composed form (NFC), with single blanks.

    Zero-width joiners and non-joiners are kept inside a name: words of Persian and Indic languages and many emoji
    need them. Other control characters and characters that cannot be seen are refused.

    Raises:
        OptionError: it is empty, too long, or has a character that cannot be seen.
    """
    if not isinstance(written, str) or not (name := unicodedata.normalize("NFC", " ".join(written.split()))):
        raise OptionError("The name of the class is empty.")
    if len(name.encode(errors="replace")) > MAX_LABEL_BYTES:
        raise OptionError(f"The name of the class is too long: the limit is {MAX_LABEL_BYTES} bytes.")
    if bad := next((sign for place, sign in enumerate(name) if _is_unseen(name, place)), ""):
        where = " at its start, at its end or after a blank" if bad in JOINERS else ""
        raise OptionError(
            f"The name of the class contains {bad!a}{where}, which cannot be seen. Remove that character."
        )
    return name


def _is_unseen(name: str, place: int) -> bool:
    """Whether a character cannot be seen: a joiner can if it joins a character to the next one."""
    sign = name[place]
    if sign in JOINERS:
        before = name[place - 1 : place]
        return before in ("", " ") or before in JOINERS or place == len(name) - 1
    return sign in BLANK_LETTERS or unicodedata.category(sign).startswith("C")


def folder_name(label: str) -> str:
    """Folder name for a label; training uses the folder name as the label.

    Raises:
        OptionError: the label cannot be the name of a class or of a folder.
    """
    name = class_name(label)
    forbidden = [c for c in name if c in "/\\" or (os.name == "nt" and c in WINDOWS_FORBIDDEN)]
    if forbidden:
        raise OptionError(f"The label becomes a folder name, which cannot contain {forbidden[0]!r}.")
    if is_hidden(name) or (os.name == "nt" and name.endswith(".")):
        raise OptionError(f"The label becomes a folder name, and training skips folders named {name!r}.")
    return name


def listed(names: Sequence[str], limit: int = 5) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit:,} more"


def visible_folders(tree: FileTree, inside: str = "") -> list[str]:
    """Names of the folders in a folder of a tree that are not hidden."""
    return [name for name in tree.folders(inside) if not is_hidden(name)]


def _subfolders(found: _Found, inside: str) -> list[str]:
    """Visible folders; hidden ones are noted."""
    names = found.tree.folders(inside)
    found.notes.extend(f"{name}: hidden folder; not a class" for name in names if is_hidden(name))
    return [name for name in names if not is_hidden(name)]


def _split_rows(found: _Found, folder: str, split: str) -> Iterator[TableRow]:
    """Every image in the class folders of a split folder."""
    classes = _subfolders(found, folder)
    yield from _rows_of(found, folder, classes, split)
    _note_strays(found, folder, classes)


def _rows_of(found: _Found, above: str, classes: Sequence[str], split: str = "") -> Iterator[TableRow]:
    """Every image in class folders, in any order within a class."""
    for name in classes:
        inside, label, others = os.path.join(above, name), "", NamesSeen()
        for file in found.tree.files_below(inside):
            if not is_image_name(file):
                others.add(file)
                continue
            if not label:
                label = found.spellings.name(name)
                found.classes.add(label)
            yield TableRow(os.path.join(inside, file), (label,), split, "")
        raw = lone_camera_raw(found.tree, others.camera_raw, inside)
        found.camera_raw.extend(os.path.join(inside, file) for file in raw)
        others.add_paired(set(others.camera_raw).difference(raw))
        if not label:
            found.notes.append(f"{inside}: contains no images; not a class")
        if others.count:
            found.notes.append(f"{inside}: {others.count} other file(s) ignored: {others.listed()}")


def _note_strays(found: _Found, inside: str, folders: Iterable[str]) -> None:
    strays = found.tree.files(inside)
    if not strays:
        return
    images = [name for name in strays if is_image_name(name)]
    where = inside or found.name
    if images and not any(True for _ in folders):
        found.notes.append(f"{where}: {len(images)} image(s) outside a class folder ignored: they have no label")
    else:
        text = f"{len(strays)} file(s) outside the class folders ignored: {listed(natsorted(strays))}"
        found.notes.append(f"{where}: {text}")


def _raw_finding(paths: Sequence[str]) -> list[Finding]:
    if not paths:
        return []
    message = f"{len(paths):,} file(s) ignored: {RAW_REMEDY}"
    return [Finding("camera-raw", "warning", message, tuple(paths))]
