"""WebDataset: members of an archive that share a name up to its first dot are one sample, an image and its label."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from natsort import natsorted

from headstart.data.file_tree import is_hidden, is_image_name
from headstart.data.finding import Finding
from headstart.data.image_table import ImageTable, Spellings, TableRow
from headstart.data.sources.interface import Contents
from headstart.files import parsed_json

LABEL_SUFFIXES: Final = ("cls", "json", "txt")
"""Suffixes of label members, the first of a sample is read. ``cls`` and ``txt`` have a class name or an index."""

LABEL_KEYS: Final = ("label", "class", "cls", "labels")
"""Keys of the label in a ``json`` member; "labels" has a list."""


@dataclass
class _Sample:
    """The members of one sample: images, and labels by suffix."""

    images: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)


def is_webdataset(contents: Contents) -> bool:
    """Whether at least half of an archive's images have a label member beside them."""
    samples = _samples(contents.names)
    with_image = [sample for sample in samples.values() if sample.images]
    return bool(with_image) and 2 * sum(bool(sample.labels) for sample in with_image) >= len(with_image)


def webdataset_rows(contents: Contents, name: str) -> ImageTable:
    """The labelled images of an archive; the paths of the rows are members.

    Samples without an image or without a label that can be read are left out and reported.

    Args:
        contents: of the archive.
        name: of the archive, for findings.
    """
    rows: dict[str, tuple[str, ...]] = {}
    spellings, lacking, extra = Spellings(), [], []
    is_multi_label = False
    for key, sample in _samples(contents.names).items():
        if not sample.images:
            lacking.append(f"{key}: no image")
            continue
        labels, is_list, fault = _labels(sample, contents.texts)
        if fault:
            lacking.append(f"{sample.images[0]}: {fault}")
            continue
        is_multi_label = is_multi_label or is_list
        if len(sample.images) > 1:
            extra.append(f"{key}: {', '.join(sample.images)}")
        rows[sample.images[0]] = tuple(dict.fromkeys(map(spellings.name, labels)))
    return ImageTable(
        rows=tuple(TableRow(path, labels, "", "") for path, labels in rows.items()),
        classes=tuple(natsorted({label for labels in rows.values() for label in labels})),
        is_multi_label=is_multi_label,
        has_splits=False,
        has_groups=False,
        findings=tuple(_findings(name, lacking, extra)),
        spellings=spellings,
    )


def _samples(names: Iterable[str]) -> dict[str, _Sample]:
    """Key, which is a path up to the first dot of the file's name -> the sample; others have no image and no label."""
    samples: dict[str, _Sample] = {}
    for name in names:
        folder, file = os.path.split(name)
        stem, _, suffix = file.partition(".")
        if any(map(is_hidden, name.split("/"))):
            continue
        if is_image_name(name):
            samples.setdefault(os.path.join(folder, stem), _Sample()).images.append(name)
        elif suffix.lower() in LABEL_SUFFIXES:
            samples.setdefault(os.path.join(folder, stem), _Sample()).labels[suffix.lower()] = name
    return samples


def _labels(sample: _Sample, texts: Mapping[str, bytes]) -> tuple[Sequence[str], bool, str]:
    """Labels of a sample, whether they are a list, and what is wrong; "" for nothing."""
    suffix = next((suffix for suffix in LABEL_SUFFIXES if suffix in sample.labels), "")
    if not suffix:
        return (), False, "no label"
    member = sample.labels[suffix]
    try:
        text = texts[member].decode()
        value = _from_json(parsed_json(text)) if suffix == "json" else text.strip()
    except KeyError:
        return (), False, f"the label in {member} is too long"
    except (UnicodeDecodeError, ValueError):
        return (), False, f"the label in {member} cannot be read"
    if isinstance(value, list):
        return [str(entry) for entry in value], True, ""
    if value is None or isinstance(value, dict) or not str(value).strip():
        keys = f"; expected the key {', '.join(LABEL_KEYS)}" if suffix == "json" else ""
        return (), False, f"{member} has no label{keys}"
    return (str(value).strip(),), False, ""


def _from_json(document: Any) -> Any:
    """The label of a JSON document: the value itself, or that of the first known key."""
    if not isinstance(document, dict):
        return document
    return next((document[key] for key in LABEL_KEYS if key in document), None)


def _findings(name: str, lacking: Sequence[str], extra: Sequence[str]) -> list[Finding]:
    found = []
    if lacking:
        message = f"{name}: {len(lacking):,} sample(s) without an image or a label are left out"
        found.append(Finding("incomplete-sample", "serious", message, tuple(lacking)))
    if extra:
        message = f"{name}: {len(extra):,} sample(s) have more than one image; the first is used"
        found.append(Finding("unused-files", "note", message, tuple(extra)))
    return found
