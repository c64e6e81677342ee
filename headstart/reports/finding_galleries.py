"""Galleries of findings: the findings of the data check with the images of each case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from headstart.data.finding import Finding
from headstart.data.sources.addresses import join
from headstart.files import path_of
from headstart.reports.report_page import shown_path

LISTED_CASES = 20
"""Maximum number of cases listed per finding; findings.json has the rest."""


@dataclass(frozen=True)
class FindingGallery:
    """A finding with its first cases.

    Attributes:
        finding: the finding.
        cases: (description, paths of its images) of each listed case.
        num_hidden: number of cases that are not listed.
    """

    finding: Finding
    cases: tuple[tuple[str, tuple[str, ...]], ...]
    num_hidden: int


def finding_galleries(findings: Sequence[Finding], base: str) -> list[FindingGallery]:
    """The galleries of findings, in the given order.

    Args:
        findings: findings of a data check.
        base: folder of the data; the paths in findings are relative to it.
    """
    return [_gallery(finding, base) for finding in findings]


def gallery_paths(galleries: Sequence[FindingGallery]) -> Iterator[str]:
    """Paths of all images in the galleries."""
    for gallery in galleries:
        for _, paths in gallery.cases:
            yield from paths


def _gallery(finding: Finding, base: str) -> FindingGallery:
    images: Sequence[tuple[str, ...]] = finding.images or ((),) * len(finding.items)
    cases = []
    for words, paths in zip(finding.items[:LISTED_CASES], images, strict=False):
        files = tuple(path_of(join(base, path)) for path in paths)
        for path, file in zip(paths, files, strict=True):
            words = words.replace(path, shown_path(file, base))
        cases.append((words, () if finding.kind == "unreadable" else files))
    return FindingGallery(finding, tuple(cases), max(0, len(finding.items) - LISTED_CASES))
