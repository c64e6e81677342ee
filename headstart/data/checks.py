"""The data checks: each is a function from ``CheckInput`` to findings, and a line in ``CHECKS``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from headstart.data.dataset import Dataset
from headstart.data.duplicates import DuplicatePair
from headstart.data.finding import Finding, Severity
from headstart.data.image_formats import has_expected_suffix
from headstart.data.preprocessing import CropMode
from headstart.data.quality import describe_unused_bits, quality_issues, unused_bits
from headstart.data.scan import Scan
from headstart.data.sources.addresses import split_address, suffix_of
from headstart.data.splits import Split

FEW_IMAGES = 10
"""Training images of a class below which a finding says so."""

IMBALANCE_RATIO = 3.0
"""Ratio of the largest to the smallest class, in training images, from which weighting the classes may help."""


@dataclass(frozen=True)
class CheckInput:
    """What a check looks at; all fields describe the same N images.

    Attributes:
        dataset: paths and labels.
        scanned: facts about the files.
        split: train, val and test.
        duplicates: pairs of positions.
        counts: split name -> class name -> number of images.
        is_scaled: whether deep images were scaled by a measured value range.
        crop_mode: how images are fitted into the network's input.
    """

    dataset: Dataset
    scanned: Scan
    split: Split
    duplicates: tuple[DuplicatePair, ...]
    counts: dict[str, dict[str, int]]
    is_scaled: bool = False
    crop_mode: CropMode = "center"


Check = Callable[[CheckInput], list[Finding]]


def image_finding(kind: str, severity: Severity, message: str, dataset: Dataset, reasons: Mapping[int, str]) -> Finding:
    """A finding about single images.

    Args:
        kind: code of the finding.
        severity: how much it matters.
        message: one sentence.
        dataset: the images.
        reasons: position of each image -> why, most severe first.
    """
    items = tuple(f"{dataset.paths[i]}: {reason}" for i, reason in reasons.items())
    return Finding(kind, severity, message, items, tuple((dataset.paths[i],) for i in reasons))


def unreadable(dataset: Dataset, scanned: Scan) -> list[Finding]:
    """Files that cannot be decoded."""
    if not scanned.faults:
        return []
    message = f"{len(scanned.faults):,} of {len(dataset):,} files cannot be read and are excluded"
    return [image_finding("unreadable", "serious", message, dataset, dict(sorted(scanned.faults.items())))]


def reading_findings(dataset: Dataset, scanned: Scan) -> list[Finding]:
    """What went wrong while the data were read, for verbs that use data without ``inspect``."""
    return [*(finding for finding in dataset.findings if finding.severity != "note"), *unreadable(dataset, scanned)]


def _unreadable(given: CheckInput) -> list[Finding]:
    """Files that cannot be decoded."""
    return unreadable(given.dataset, given.scanned)


def _leaks(given: CheckInput) -> list[Finding]:
    """Identical or near-identical images in two splits of the data."""
    leaks = given.split.leaks
    if not leaks:
        return []
    message = (
        f"{len(leaks):,} pair(s) of identical or near-identical images are divided between two of the given splits: "
        "the score is too high"
    )
    return [_pair_finding("leak", "serious", message, given.dataset, leaks)]


def _conflicting_labels(given: CheckInput) -> list[Finding]:
    """Identical or near-identical images with different labels."""
    pairs, labels = _conflicting(given), given.dataset.label_names()
    if not pairs:
        return []
    message = f"{len(pairs):,} pair(s) of identical or near-identical images have different labels"
    finding = _pair_finding("conflicting-labels", "serious", message, given.dataset, pairs)
    names = [f"({labels[pair.first] or '-'}, {labels[pair.second] or '-'})" for pair in pairs]
    items = tuple(f"{item} {both}" for item, both in zip(finding.items, names, strict=True))
    return [Finding(finding.kind, finding.severity, message, items, finding.images)]


def _duplicates(given: CheckInput) -> list[Finding]:
    """Identical or near-identical images with the same label, in the same split."""
    other = {*given.split.leaks, *_conflicting(given)}
    pairs = [pair for pair in given.duplicates if pair not in other]
    if not pairs:
        return []
    exact = sum(pair.exact for pair in pairs)
    message = (
        f"{len(pairs):,} pair(s) of identical or near-identical images within a class ({exact:,} with equal bytes)"
    )
    return [_pair_finding("duplicate", "note", message, given.dataset, pairs)]


def _conflicting(given: CheckInput) -> list[DuplicatePair]:
    labels = given.dataset.label_names()
    return [pair for pair in given.duplicates if labels[pair.first] != labels[pair.second]]


def _pair_finding(
    kind: str, severity: Severity, message: str, dataset: Dataset, pairs: Iterable[DuplicatePair]
) -> Finding:
    paths = tuple((dataset.paths[pair.first], dataset.paths[pair.second]) for pair in pairs)
    items = tuple(f"{one} {'=' if pair.exact else '~'} {two}" for pair, (one, two) in zip(pairs, paths, strict=True))
    return Finding(kind, severity, message, items, paths)


def _excluded_from_split(given: CheckInput) -> list[Finding]:
    """Images left out of a drawn val or test, because a near-identical image is in a split before it."""
    if not given.split.left_out:
        return []
    reasons = dict(sorted(given.split.left_out.items()))
    message = f"{len(reasons):,} image(s) are excluded from val and test: a near-identical image is in another split"
    return [image_finding("excluded-from-split", "warning", message, given.dataset, reasons)]


def _bit_depth(given: CheckInput) -> list[Finding]:
    """Images that look dark because they use few of their bits, as those of many microscopes do."""
    if given.is_scaled:
        return []
    found = []
    for bits, used in unused_bits(given.scanned).items():
        count = int((given.scanned.facts["bits"][given.scanned.usable] == bits).sum())
        message = (
            f"{describe_unused_bits(count, bits, used)}. Train with value_range data (--value-range data), which "
            "scales values by the range measured on the training images"
        )
        found.append(Finding("bit-depth", "warning", message))
    return found


def _quality(given: CheckInput) -> list[Finding]:
    """Blank, dark, bright, blurred and tiny images, and extreme aspect ratios."""
    found = []
    for issue in quality_issues(given.scanned, is_scaled=given.is_scaled, crop_mode=given.crop_mode):
        count = len(issue.positions)
        if issue.is_typical:
            message = (
                f"{count:,} of {len(given.dataset):,} images are {issue.words}: most likely a property of the data, "
                "not a fault"
            )
            found.append(Finding(issue.kind, "note", message))
        else:
            message = f"{count:,} image(s) are {issue.words}"
            reasons = dict(zip(issue.positions, issue.reasons, strict=True))
            severity: Severity = "warning" if issue.is_fault else "note"
            found.append(image_finding(issue.kind, severity, message, given.dataset, reasons))
    return found


def _missing_classes(given: CheckInput) -> list[Finding]:
    """Classes without images in a split."""
    found = []
    total = len(given.dataset.classes)
    for name in sorted(given.split.names, key="train".__eq__):  # train last
        missing = tuple(label for label, count in given.counts[name].items() if count == 0)
        if missing:
            message = f"{name} has no images of {len(missing)} of {total} classes: its score does not include them"
            if name == "train":
                message = f"train has no image of {len(missing)} class(es): the classifier cannot learn them"
            found.append(Finding("missing-class", "serious", message, missing))
    return found


def _few_images(given: CheckInput) -> list[Finding]:
    """Classes with few training images."""
    few = tuple(f"{label}: {count}" for label, count in _train_counts(given).items() if 0 < count < FEW_IMAGES)
    message = f"{len(few)} class(es) have under {FEW_IMAGES} training images"
    return [Finding("few-images", "warning", message, few)] if few else []


def _constant_labels(given: CheckInput) -> list[Finding]:
    """Multi-label data: labels that every training image has."""
    if not given.dataset.multi_label:
        return []
    size = given.split.sizes.get("train", 0)
    constant = tuple(label for label, count in _train_counts(given).items() if count and count == size)
    message = f"{len(constant)} label(s) apply to every training image, so there is nothing to learn"
    return [Finding("constant-label", "serious", message, constant)] if constant else []


def _class_imbalance(given: CheckInput) -> list[Finding]:
    """Single-label data: classes of very different sizes."""
    counts = _train_counts(given)
    sizes = [count for count in counts.values() if count]
    if given.dataset.multi_label or not sizes or max(sizes) < IMBALANCE_RATIO * min(sizes):
        return []
    message = (
        f"the largest class has {max(sizes) / min(sizes):.1f} times as many training images as the smallest; "
        "the option balance_classes weights all classes equally"
    )
    return [Finding("class-imbalance", "warning", message, tuple(f"{k}: {v}" for k, v in counts.items()))]


def _wrong_extensions(given: CheckInput) -> list[Finding]:
    """Files whose suffix belongs to another format than their content."""
    forms = given.scanned.facts["format"].astype(str).tolist()
    usable: Sequence[int] = np.flatnonzero(given.scanned.usable).tolist()
    paths = given.dataset.paths
    reasons = {i: f"is {forms[i]}" for i in usable if _has_other_suffix(paths[i], forms[i])}
    message = f"{len(reasons):,} file(s) have the extension of another format; the format is detected from the content"
    return [image_finding("wrong-extension", "note", message, given.dataset, reasons)] if reasons else []


def _has_other_suffix(path: str, image_format: str) -> bool:
    """Whether a file's name has the suffix of another format; rows of tables and many URLs have none."""
    container, member = split_address(path)
    suffix = suffix_of(member or container)
    return bool(suffix) and not has_expected_suffix(f"image{suffix}", image_format)


def _from_index(given: CheckInput) -> list[Finding]:
    """Findings from reading the folder or the table."""
    return list(given.dataset.findings)


def _train_counts(given: CheckInput) -> dict[str, int]:
    return given.counts.get("train", {})


CHECKS: tuple[Check, ...] = (
    _unreadable,
    _leaks,
    _conflicting_labels,
    _duplicates,
    _excluded_from_split,
    _bit_depth,
    _quality,
    _missing_classes,
    _few_images,
    _constant_labels,
    _class_imbalance,
    _wrong_extensions,
    _from_index,
)
"""Registry of all checks. Within one severity, findings are listed in this order."""
