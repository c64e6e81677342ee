"""What is wrong, or merely odd, with a data set: findings, the gravest first. No image is ever changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headstart.data.dataset import SPLITS, Dataset, open_data
from headstart.data.duplicates import DuplicatePair, find_duplicates
from headstart.data.finding import Finding, Severity
from headstart.data.image_formats import has_expected_suffix
from headstart.data.preprocessing import Preprocessing
from headstart.data.quality import quality_issues, unused_bits
from headstart.data.scan import Scan, scan
from headstart.data.splits import Split, SplitShares, make_split, split_counts
from headstart.errors import DataError
from headstart.progress import Progress, SilentProgress, with_example

SHOWN_LINES = 2
"""In which a run says what was found in its files; what features say of labels is the third."""

FEW_IMAGES = 10
IMBALANCE_THAT_MATTERS = 3.0
"""Images of the largest class over those of the smallest, in train, from which weighting the classes may pay."""

_RANK: dict[Severity, int] = {"serious": 0, "warning": 1, "note": 2}


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

    def num_distinct_images(self) -> int:
        """Number of images that are left where near-identical ones count as one; unreadable files are not counted."""
        group = {key: key for key, ok in zip(self.scanned.keys, self.scanned.usable, strict=True) if ok}

        def first(key: bytes) -> bytes:
            while group[key] != key:
                key = group[key] = group[group[key]]
            return key

        for pair in self.duplicates:
            group[first(self.scanned.keys[pair.first])] = first(self.scanned.keys[pair.second])
        return sum(key == own for key, own in group.items())

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
    scaled = preprocessing is not None and preprocessing.value_range is not None
    findings = _findings(dataset, scanned, split, duplicates, scaled=scaled)
    return Inspection(dataset, scanned, split, duplicates, findings)


def _findings(
    dataset: Dataset, scanned: Scan, split: Split, duplicates: Sequence[DuplicatePair], *, scaled: bool
) -> tuple[Finding, ...]:
    found = [
        *unreadable(dataset, scanned),
        *_duplicates(dataset, split, duplicates),
        *_left_out(dataset, split),
        *([] if scaled else _bit_depths(scanned)),
        *_oddities(dataset, scanned, scaled=scaled),
        *_class_sizes(dataset, split),
        *_wrong_endings(dataset, scanned),
        *dataset.findings,
    ]
    return by_severity(found)


def by_severity(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The gravest first."""
    return tuple(sorted(findings, key=lambda finding: _RANK[finding.severity]))


def summary_lines(findings: Sequence[Finding]) -> list[str]:
    """At most ``SHOWN_LINES``: the gravest findings, each with an example, and how many more there are; no notes."""
    told = [finding for finding in findings if finding.severity != "note"]
    shown = told if len(told) <= SHOWN_LINES else told[: SHOWN_LINES - 1]
    lines = [with_example(f"{f.severity.capitalize()}: {f.message}", f.items) for f in shown]
    if len(told) > len(shown):
        rest = told[len(shown) :]
        serious = sum(f.severity == "serious" for f in rest)
        lines.append(f"And {len(rest)} findings more ({serious} serious), in findings.json and the report.")
    return lines


def images_to_exclude(look: Inspection) -> dict[int, str]:
    """Which images to leave out so that nothing serious and no warning is left: position -> the kind of the finding.

    Of identical images the first stays, but of a leak the one on the training side goes. Of images that bear two labels
    both go. What is only noted stays, and so do classes, whatever their size.
    """
    place = {path: i for i, path in enumerate(look.dataset.paths)}
    out: dict[int, str] = {}
    for finding in look.findings:
        for paths in finding.images:
            own = [place[path] for path in paths]
            if finding.kind == "leak":
                own = [min(own, key=lambda i: SPLITS.index(look.split.assigned[i]))]
            elif finding.kind == "duplicate":
                own = [i for i in own[1:] if own[0] not in out]
            elif finding.severity == "note":
                own = []
            for i in own:
                out.setdefault(i, finding.kind)
    return out


def unreadable(dataset: Dataset, scanned: Scan) -> list[Finding]:
    """One finding that names every file that cannot be used, or none."""
    if not scanned.faults:
        return []
    message = f"{len(scanned.faults):,} of {len(dataset):,} files cannot be used and are left out"
    return [image_finding("unreadable", "serious", message, dataset, dict(sorted(scanned.faults.items())))]


def reading_findings(dataset: Dataset, scanned: Scan) -> list[Finding]:
    """What was lost, or may be wrong, when the data were read: for whoever uses them without ``inspect``."""
    return [*(finding for finding in dataset.findings if finding.severity != "note"), *unreadable(dataset, scanned)]


def image_finding(kind: str, severity: Severity, message: str, dataset: Dataset, reasons: Mapping[int, str]) -> Finding:
    """A finding about single images: position -> reason, the gravest first."""
    items = tuple(f"{dataset.paths[i]}: {reason}" for i, reason in reasons.items())
    return Finding(kind, severity, message, items, tuple((dataset.paths[i],) for i in reasons))


def _duplicates(dataset: Dataset, split: Split, duplicates: Sequence[DuplicatePair]) -> list[Finding]:
    def name(pair: DuplicatePair) -> str:
        relation = "=" if pair.exact else "~"
        return f"{dataset.paths[pair.first]} {relation} {dataset.paths[pair.second]}"

    def images(pairs: Sequence[DuplicatePair]) -> tuple[tuple[str, ...], ...]:
        return tuple((dataset.paths[p.first], dataset.paths[p.second]) for p in pairs)

    found = []
    if split.leaks:
        message = (
            f"{len(split.leaks):,} pair(s) of identical or near-identical images stand on two sides of the given "
            "split: the score is too high by what they add"
        )
        found.append(Finding("leak", "serious", message, tuple(map(name, split.leaks)), images(split.leaks)))
    labels = dataset.label_names()
    two_labels = [p for p in duplicates if labels[p.first] != labels[p.second]]
    if two_labels:
        items = tuple(f"{name(p)} ({labels[p.first] or '-'}, {labels[p.second] or '-'})" for p in two_labels)
        message = f"{len(items):,} pair(s) of alike images, two labels"
        found.append(Finding("conflicting-labels", "serious", message, items, images(two_labels)))
    same = [p for p in duplicates if p not in split.leaks and p not in two_labels]
    if same:
        exact = sum(p.exact for p in same)
        message = f"{len(same):,} pair(s) of alike images within a class ({exact:,} byte for byte)"
        found.append(Finding("duplicate", "note", message, tuple(map(name, same)), images(same)))
    return found


def _left_out(dataset: Dataset, split: Split) -> list[Finding]:
    if not split.left_out:
        return []
    reasons = dict(sorted(split.left_out.items()))
    message = f"{len(reasons):,} image(s) left out of val and test, since near-identical ones stand before them"
    return [image_finding("excluded-from-split", "warning", message, dataset, reasons)]


def _bit_depths(scanned: Scan) -> list[Finding]:
    """Images that are dark since they use few of their bits, as those of many microscopes do."""
    found = []
    for bits, used in unused_bits(scanned).items():
        count = int((scanned.facts["bits"][scanned.usable] == bits).sum())
        message = (
            f"{count:,} images have {bits} bits per channel and use {used} of them: at full scale the network sees at "
            f"most {100 / 2 ** (bits - used):.2g} % of white. Train with --value-range data, which scales them by the "
            "training images' own values"
        )
        found.append(Finding("bit-depth", "warning", message))
    return found


def _oddities(dataset: Dataset, scanned: Scan, *, scaled: bool) -> list[Finding]:
    found = []
    for own in quality_issues(scanned, scaled=scaled):
        count = len(own.positions)
        if own.nature:
            message = f"{count:,} of {len(dataset):,} images are {own.words}; so many that these data are like that"
            found.append(Finding(own.kind, "note", message))
        else:
            message = f"{count:,} image(s) {own.words}"
            reasons = dict(zip(own.positions, own.reasons, strict=True))
            found.append(image_finding(own.kind, "warning" if own.fault else "note", message, dataset, reasons))
    return found


def _class_sizes(dataset: Dataset, split: Split) -> list[Finding]:
    counts = split_counts(dataset, split)
    found = []
    for name in [s for s in split.names if s != "train"]:
        absent = tuple(label for label, count in counts[name].items() if count == 0)
        if absent:
            message = f"{name} has no image of {len(absent)} of {len(dataset.classes)} classes: it says nothing of them"
            found.append(Finding("missing-class", "serious", message, absent))
    train = counts.get("train", {})
    absent = tuple(label for label, count in train.items() if count == 0)
    if absent:
        message = f"train has no image of {len(absent)} class(es): the classifier cannot learn them"
        found.append(Finding("missing-class", "serious", message, absent))
    few = tuple(f"{label}: {count}" for label, count in train.items() if 0 < count < FEW_IMAGES)
    if few:
        message = f"{len(few)} class(es) have under {FEW_IMAGES} training images"
        found.append(Finding("few-images", "warning", message, few))
    if dataset.multi_label:
        everywhere = tuple(label for label, count in train.items() if count and count == split.sizes["train"])
        if everywhere:
            message = f"{len(everywhere)} label(s) stand on every training image: there is nothing to tell"
            found.append(Finding("constant-label", "serious", message, everywhere))
        return found
    sizes = [count for count in train.values() if count]
    if sizes and max(sizes) >= IMBALANCE_THAT_MATTERS * min(sizes):
        message = (
            f"the largest class has {max(sizes) / min(sizes):.1f} times the training images of the smallest; "
            "--balance-classes weights them alike"
        )
        found.append(Finding("class-imbalance", "warning", message, tuple(f"{k}: {v}" for k, v in train.items())))
    return found


def _wrong_endings(dataset: Dataset, scanned: Scan) -> list[Finding]:
    forms = scanned.facts["format"].astype(str).tolist()
    usable = np.flatnonzero(scanned.usable).tolist()
    reasons = {i: f"is {forms[i]}" for i in usable if not has_expected_suffix(dataset.paths[i], forms[i])}
    message = f"{len(reasons):,} file(s) with the ending of another format; they are read all the same"
    return [image_finding("wrong-extension", "note", message, dataset, reasons)] if reasons else []
