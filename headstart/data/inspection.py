"""Inspection of a data set: open, scan, find duplicates, split and check. No image is changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from headstart.data.checks import CHECKS, CheckInput
from headstart.data.dataset import Dataset, open_data
from headstart.data.duplicates import DuplicatePair, find_duplicates
from headstart.data.finding import Finding, Severity
from headstart.data.image_table import SPLITS
from headstart.data.preprocessing import CropMode, Preprocessing
from headstart.data.scan import Scan, scan
from headstart.data.splits import Split, SplitShares, make_split, split_counts
from headstart.errors import DataError
from headstart.progress import Progress, SilentProgress

SUMMARY_LINES = 2
"""Lines in which a run summarises the findings about files; findings about labels have a third."""

_RANK: dict[Severity, int] = {"serious": 0, "warning": 1, "note": 2}


@dataclass(frozen=True)
class Inspection:
    """An inspected data set, from which every later step starts.

    Attributes:
        dataset: N images.
        scanned: facts about the N files.
        split: train, val and test of the N images.
        duplicates: pairs of positions.
        findings: most severe first.
    """

    dataset: Dataset
    scanned: Scan
    split: Split
    duplicates: tuple[DuplicatePair, ...]
    findings: tuple[Finding, ...]

    def num_distinct_images(self) -> int:
        """Number of readable images, where each group of near-identical ones counts once."""
        group = {key: key for key, ok in zip(self.scanned.keys, self.scanned.usable, strict=True) if ok}

        def first(key: bytes) -> bytes:  # union-find with path halving
            while group[key] != key:
                key = group[key] = group[group[key]]
            return key

        for pair in self.duplicates:
            group[first(self.scanned.keys[pair.first])] = first(self.scanned.keys[pair.second])
        return sum(key == parent for key, parent in group.items())

    def counts(self) -> dict[str, dict[str, int]]:
        """Split name -> class name -> number of images; a multi-label image counts for each of its labels."""
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
    """Opens a data set, scans every file, finds duplicates, makes the split and runs all checks.

    Args:
        source: a folder, a table, or an opened data set.
        seed: of a drawn split.
        shares: of a drawn split; default: 15 % val and 15 % test.
        preprocessing: if given, the preprocessed pixels are cached on the way.
        cache: cache folder; default: ``cache_root()``.
        progress: receives a step per file.

    Raises:
        DataError: the data cannot be used at all, for example because no image can be read.
        CacheError: the cache cannot be written.
    """
    dataset = source if isinstance(source, Dataset) else open_data(source)
    progress = progress or SilentProgress()
    scanned = scan(dataset.files(), preprocessing=preprocessing, cache=cache, progress=progress)
    if len(scanned.faults) == len(dataset):
        first = min(scanned.faults)
        raise DataError(
            f"{dataset.root}: none of the {len(dataset):,} images can be read. The first: {dataset.paths[first]}: "
            f"{scanned.faults[first]}."
        )
    searched = find_duplicates(scanned, progress)
    duplicates = searched.pairs
    split = make_split(dataset, scanned, duplicates, seed=seed, shares=shares)
    is_scaled = preprocessing is not None and preprocessing.value_range is not None
    crop_mode: CropMode = "center" if preprocessing is None else preprocessing.crop_mode
    given = CheckInput(dataset, scanned, split, duplicates, split_counts(dataset, split), is_scaled, crop_mode)
    checked = [finding for check in CHECKS for finding in check(given)]
    findings = by_severity([*searched.findings(), *checked])
    return Inspection(dataset, scanned, split, duplicates, findings)


def by_severity(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings, most severe first; the order within one severity stays."""
    return tuple(sorted(findings, key=lambda finding: _RANK[finding.severity]))


def summary_lines(findings: Sequence[Finding]) -> list[str]:
    """At most ``SUMMARY_LINES`` lines: the most severe findings with an example, then how many more; no notes."""
    listed = [finding for finding in findings if finding.severity != "note"]
    shown = listed if len(listed) <= SUMMARY_LINES else listed[: SUMMARY_LINES - 1]
    lines = [finding.line for finding in shown]
    if len(listed) > len(shown):
        rest = listed[len(shown) :]
        serious = sum(f.severity == "serious" for f in rest)
        lines.append(f"{len(rest)} more findings ({serious} serious): see findings.json and the report.")
    return lines


def images_to_exclude(look: Inspection) -> dict[int, str]:
    """The images to exclude so that no serious finding and no warning about single images is left.

    Of identical images the first stays; of a leak, the image in train is excluded, so that scores stay comparable; of
    images with conflicting labels both are excluded. Findings of severity "note" exclude nothing.

    Returns:
        Position -> code of the finding.
    """
    place = {path: i for i, path in enumerate(look.dataset.paths)}
    excluded: dict[int, str] = {}
    for finding in look.findings:
        for paths in finding.images:
            positions = [place[path] for path in paths]
            if finding.kind == "leak":
                positions = [min(positions, key=lambda i: SPLITS.index(look.split.assigned[i]))]
            elif finding.kind == "duplicate":
                positions = [i for i in positions[1:] if positions[0] not in excluded]
            elif finding.severity == "note":
                positions = []
            for i in positions:
                excluded.setdefault(i, finding.kind)
    return excluded
