"""Labels for other programs: a table, class folders, and COCO-style and Label Studio JSON."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from headstart.data.class_folders import folder_name
from headstart.data.sources.addresses import is_url, name_of, parent_of, relative_to, split_address
from headstart.data.sources.read import read_image
from headstart.errors import OptionError, OutputError
from headstart.files import UserPath, json_text, not_written, text_bytes, user_path, write_atomically, write_csv_file
from headstart.labelling.label_state import LabelState
from headstart.labelling.label_table import table_text

NONE_CLASS: Final = "none"
"""Class of images that were answered with none of the classes, if they are exported."""

KINDS: Final = ("csv", "folders", "coco", "label-studio")

How = Literal["copy", "link"]


@dataclass(frozen=True)
class LabelledImage:
    """An image with its labels.

    Attributes:
        address: absolute path or URL.
        labels: names of classes.
        split: "train", "val" or "test".
        source: of the answer.
        time: of the answer.
        size: width and height in pixels; None if unknown.
    """

    address: str
    labels: tuple[str, ...]
    split: str
    source: str
    time: str
    size: tuple[int, int] | None = None


def labelled_images(
    state: LabelState,
    find: Callable[[str], tuple[str, tuple[int, int] | None] | None],
    *,
    none_class: bool,
) -> list[LabelledImage]:
    """The labelled images of a session.

    Args:
        state: labels.
        find: path in the table -> address and size; None for an image that is not in the source any more.
        none_class: whether images answered with none of the classes are in a class ``NONE_CLASS``.
    """
    found = []
    for path, answer in state.answers.items():
        labels = (NONE_CLASS,) if none_class and answer.kind == "none" else answer.labels
        if labels and (place := find(path)) is not None:
            found.append(LabelledImage(place[0], labels, state.split_of(path), answer.source, answer.time, place[1]))
    return found


def export_csv(images: Sequence[LabelledImage], out: UserPath, *, multi_label: bool) -> int:
    """A table for ``headstart train`` whose paths are relative to its folder; returns the number of rows.

    Raises:
        OutputError: it cannot be written.
    """
    base = parent_of(os.path.abspath(user_path(out)))
    rows = [(relative_to(i.address, base), i.labels, i.split, i.source, i.time) for i in images]
    write_csv_file(out, table_text(rows, multi_label=multi_label))
    return len(rows)


def export_coco(images: Sequence[LabelledImage], out: UserPath, classes: Sequence[str]) -> int:
    """COCO-style JSON with a category for each label of an image; returns the number of annotations."""
    base = parent_of(os.path.abspath(user_path(out)))
    names = list(dict.fromkeys([*classes, *(label for image in images for label in image.labels)]))
    category = {name: number for number, name in enumerate(names, start=1)}
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, int]] = []
    for number, image in enumerate(images, start=1):
        size = {} if image.size is None else {"width": image.size[0], "height": image.size[1]}
        listed.append({"id": number, "file_name": relative_to(image.address, base), "split": image.split} | size)
        annotations += [
            {"id": len(annotations) + place, "image_id": number, "category_id": category[label]}
            for place, label in enumerate(image.labels, start=1)
        ]
    categories = [{"id": number, "name": name} for name, number in category.items()]
    _write_json({"images": listed, "categories": categories, "annotations": annotations}, out)
    return len(annotations)


def export_label_studio(images: Sequence[LabelledImage], out: UserPath) -> int:
    """Tasks of Label Studio with one annotation each; returns the number of tasks."""
    base = parent_of(os.path.abspath(user_path(out)))
    tasks = []
    for image in images:
        value = {"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": list(image.labels)}}
        data = {"image": relative_to(image.address, base), "split": image.split}
        tasks.append({"data": data, "annotations": [{"result": [value]}]})
    _write_json(tasks, out)
    return len(tasks)


def _write_json(document: Any, out: UserPath) -> None:
    path = user_path(out)
    try:
        write_atomically(path, text_bytes(json_text(document, indent=1)))
    except OSError as error:
        raise OutputError(f"{not_written(path, error)}, or name another file.") from error


def export_folders(images: Sequence[LabelledImage], out: UserPath, *, how: How) -> int:
    """A folder for each class below a new folder for each split; returns the number of files.

    Two images with the same name get different names. Labels of the images are unchanged; an image with several
    labels is in several folders.

    Args:
        images: to export.
        out: a folder that is empty or does not exist.
        how: "copy", or "link" for symbolic links, which need files on this machine.

    Raises:
        OptionError: there are no images, the folder is not empty, a class cannot be a folder, or an image cannot be
            linked.
        OutputError: it cannot be written.
    """
    if how not in ("copy", "link"):
        raise OptionError(f"how {how!r}: expected copy or link.")
    if not images:
        raise OptionError("No image has a label yet. Label images first.")
    folder = user_path(out)
    folders = {label: _folder_of(label) for image in images for label in image.labels}
    if gone := [image.address for image in images if _is_file(image.address) and not os.path.isfile(image.address)]:
        more = f" ({len(gone):,} images are missing)" if len(gone) > 1 else ""
        raise OptionError(f"{gone[0]}: no such file{more}. Restore it, or remove its label.")
    if how == "link" and (bad := next((i.address for i in images if not _is_file(i.address)), "")):
        raise OptionError(f"{bad}: only files on this machine can be linked. Choose copy.")
    try:
        if folder.exists() and any(folder.iterdir()):
            raise OptionError(f"{folder}: not empty. Name a new folder.")
        return sum(
            _place(image, folder / image.split / folders[label], how) for image in images for label in image.labels
        )
    except OSError as error:
        raise OutputError(f"{not_written(folder, error)}, or name another folder.") from error


def _folder_of(label: str) -> str:
    try:
        return folder_name(label)
    except OptionError as error:
        raise OptionError(f"Class {label!r}: {error} Rename the class, or export a table.") from error


def _is_file(address: str) -> bool:
    return not is_url(address) and not split_address(address)[1]


def _place(image: LabelledImage, folder: Path, how: How) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    container, member = split_address(image.address)
    stem, suffix = os.path.splitext(name_of(member or container))
    target, number = folder / f"{stem}{suffix}", 1
    while os.path.lexists(target):
        number += 1
        target = folder / f"{stem}-{number}{suffix}"
    if how == "link":
        target.symlink_to(image.address)
    else:
        target.write_bytes(read_image(image.address))
    return 1


def export_labels(
    kind: str,
    images: Sequence[LabelledImage],
    out: UserPath,
    classes: Sequence[str],
    *,
    multi_label: bool,
    how: How = "copy",
) -> int:
    """Exports labels; returns the number of labels or files written.

    Args:
        kind: one of ``KINDS``.
        images: to export.
        out: file, or folder.
        classes: names in order.
        multi_label: whether an image may have any number of labels.
        how: see ``export_folders``.

    Raises:
        OptionError: the kind is unknown; and see ``export_folders``.
        OutputError: it cannot be written.
    """
    if kind == "csv":
        return export_csv(images, out, multi_label=multi_label)
    if kind == "folders":
        return export_folders(images, out, how=how)
    if kind == "coco":
        return export_coco(images, out, classes)
    if kind == "label-studio":
        return export_label_studio(images, out)
    raise OptionError(f"kind {kind!r}: expected one of {', '.join(KINDS)}.")
