"""What is wrong, or merely odd, with a data set: findings, the gravest first. No image is ever changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from headstart.data.dataset import Dataset, open_data
from headstart.data.duplicates import DuplicatePair, find_duplicates
from headstart.data.images import Preprocessing, format_fits_name
from headstart.data.scan import Scan, scan
from headstart.data.splits import Split, SplitShares, make_split, split_counts
from headstart.errors import DataError
from headstart.progress import Progress, SilentProgress

FEW_IMAGES = 10
IMBALANCE_THAT_MATTERS = 3.0
"""Images of the largest class over those of the smallest, in train, from which weighting the classes may pay."""

Severity = Literal["serious", "warning", "note"]
_RANK: dict[Severity, int] = {"serious": 0, "warning": 1, "note": 2}


@dataclass(frozen=True)
class Finding:
    """One kind of trouble and where it is.

    Attributes:
        kind: a short stable name, "unreadable".
        severity: "serious" (distorts the result), "warning" (worth a look) or "note".
        message: one sentence.
        items: the paths, or pairs of paths, each with its reason.
    """

    kind: str
    severity: Severity
    message: str
    items: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """A data set, looked at: what every later step starts from.

    Attributes:
        dataset: N images.
        scanned: of the same N.
        split: of the same N.
        duplicates: pairs of positions.
        findings: the gravest first.
    """

    dataset: Dataset
    scanned: Scan
    split: Split
    duplicates: tuple[DuplicatePair, ...]
    findings: tuple[Finding, ...]

    def counts(self) -> dict[str, dict[str, int]]:
        """Split name -> class name -> images; one with several labels counts for each."""
        return split_counts(self.dataset, self.split)


def inspect(
    source: str | Path | Dataset,
    *,
    seed: int = 0,
    shares: SplitShares | None = None,
    preprocessing: Preprocessing | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """Opens the data, looks at every file, finds duplicates, and settles the split.

    Args:
        source: a folder, a table, or a data set that is open already.
        seed: of a drawn split.
        shares: of a drawn split.
        preprocessing: where given, the pixels are in the cache afterwards.
        cache: the cache folder; the default one where it is not given.
        progress: told of each file.

    Raises:
        DataError: the data cannot be used at all; says what was found.
        CacheError: the cache cannot be written.
    """
    progress = progress or SilentProgress()
    dataset = open_data(source)
    scanned = scan(dataset.files(), preprocessing=preprocessing, cache=cache, progress=progress)
    if len(scanned.faults) == len(dataset):
        first = min(scanned.faults)
        raise DataError(
            f"{dataset.root}: none of its {len(dataset):,} images can be read. "
            f"The first, {dataset.paths[first]}: {scanned.faults[first]}."
        )
    duplicates = tuple(find_duplicates(scanned))
    split = make_split(dataset, scanned, duplicates, seed=seed, shares=shares)
    findings = _findings(dataset, scanned, split, duplicates)
    return Inspection(dataset, scanned, split, duplicates, findings)


def _findings(
    dataset: Dataset, scanned: Scan, split: Split, duplicates: Sequence[DuplicatePair]
) -> tuple[Finding, ...]:
    found = [
        *unreadable(dataset, scanned),
        *_duplicates(dataset, split, duplicates),
        *_left_out(dataset, split),
        *_class_sizes(dataset, split),
        *_wrong_endings(dataset, scanned),
        *(Finding("name", "note", note) for note in dataset.notes),
    ]
    return tuple(sorted(found, key=lambda finding: _RANK[finding.severity]))


def unreadable(dataset: Dataset, scanned: Scan) -> list[Finding]:
    """One finding that names every file that cannot be used, or none."""
    if not scanned.faults:
        return []
    items = tuple(f"{dataset.paths[i]}: {reason}" for i, reason in sorted(scanned.faults.items()))
    message = f"{len(items):,} of {len(dataset):,} files cannot be used and are left out"
    return [Finding("unreadable", "serious", message, items)]


def _duplicates(dataset: Dataset, split: Split, duplicates: Sequence[DuplicatePair]) -> list[Finding]:
    def name(pair: DuplicatePair) -> str:
        relation = "=" if pair.exact else "~"
        return f"{dataset.paths[pair.first]} {relation} {dataset.paths[pair.second]}"

    found = []
    if split.leaks:
        message = (
            f"{len(split.leaks):,} pair(s) of identical or near-identical images stand on two sides of the given "
            "split: the score is too high by what they add"
        )
        found.append(Finding("leak", "serious", message, tuple(map(name, split.leaks))))
    labels = dataset.label_names()
    two_labels = [p for p in duplicates if labels[p.first] != labels[p.second]]
    if two_labels:
        items = tuple(f"{name(p)} ({labels[p.first] or '-'}, {labels[p.second] or '-'})" for p in two_labels)
        found.append(Finding("two-labels", "serious", f"{len(items):,} pair(s) of alike images, two labels", items))
    same = [p for p in duplicates if p not in split.leaks and p not in two_labels]
    if same:
        exact = sum(p.exact for p in same)
        message = f"{len(same):,} pair(s) of alike images within a class ({exact:,} byte for byte)"
        found.append(Finding("duplicate", "note", message, tuple(map(name, same))))
    return found


def _left_out(dataset: Dataset, split: Split) -> list[Finding]:
    if not split.left_out:
        return []
    items = tuple(f"{dataset.paths[i]}: {reason}" for i, reason in sorted(split.left_out.items()))
    message = f"{len(items):,} image(s) left out of val and test, since near-identical ones stand before them"
    return [Finding("left-out", "warning", message, items)]


def _class_sizes(dataset: Dataset, split: Split) -> list[Finding]:
    counts = split_counts(dataset, split)
    found = []
    for name in [s for s in split.names if s != "train"]:
        absent = tuple(label for label, count in counts[name].items() if count == 0)
        if absent:
            message = f"{name} has no image of {len(absent)} of {len(dataset.classes)} classes: it says nothing of them"
            found.append(Finding("class-missing", "serious", message, absent))
    train = counts.get("train", {})
    absent = tuple(label for label, count in train.items() if count == 0)
    if absent:
        message = f"train has no image of {len(absent)} class(es): the classifier cannot learn them"
        found.append(Finding("class-missing", "serious", message, absent))
    few = tuple(f"{label}: {count}" for label, count in train.items() if 0 < count < FEW_IMAGES)
    if few:
        message = f"{len(few)} class(es) have under {FEW_IMAGES} training images"
        found.append(Finding("few-images", "warning", message, few))
    if dataset.multi_label:
        everywhere = tuple(label for label, count in train.items() if count and count == split.sizes["train"])
        if everywhere:
            message = f"{len(everywhere)} label(s) stand on every training image: there is nothing to tell"
            found.append(Finding("label-everywhere", "serious", message, everywhere))
        return found
    sizes = [count for count in train.values() if count]
    if sizes and max(sizes) >= IMBALANCE_THAT_MATTERS * min(sizes):
        message = (
            f"the largest class has {max(sizes) / min(sizes):.1f} times the training images of the smallest; "
            "--balance weights them alike"
        )
        found.append(Finding("imbalance", "warning", message, tuple(f"{k}: {v}" for k, v in train.items())))
    return found


def _wrong_endings(dataset: Dataset, scanned: Scan) -> list[Finding]:
    items = tuple(
        f"{path}: is {form}"
        for path, ok, form in zip(
            dataset.paths, scanned.usable, scanned.facts["format"].astype(str).tolist(), strict=True
        )
        if ok and not format_fits_name(path, form)
    )
    message = f"{len(items):,} file(s) with the ending of another format; they are read all the same"
    return [Finding("wrong-ending", "note", message, items)] if items else []
