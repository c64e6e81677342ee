"""Findings: problems with a data set, and facts worth knowing about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from headstart.data.sources.addresses import join
from headstart.progress import with_example

Severity = Literal["serious", "warning", "note"]

SHOWN_CASES = 12
"""Cases of a finding whose images a page shows."""

OLD_KINDS: Final = {
    "two-labels": "conflicting-labels",
    "left-out": "excluded-from-split",
    "odd-shape": "extreme-aspect-ratio",
    "wrong-ending": "wrong-extension",
    "label-everywhere": "constant-label",
    "class-missing": "missing-class",
    "imbalance": "class-imbalance",
    "not-learnable": "not-trainable",
    "no-split": "row-without-split",
    "class-names": "similar-class-names",
    "path": "path-spelling",
    "name": "unused-files",
}
"""Codes in findings.json of earlier versions -> the codes of today."""


@dataclass(frozen=True)
class Finding:
    """One kind of problem, and where it occurs.

    Attributes:
        kind: stable code, such as "unreadable".
        severity: "serious" (distorts the result), "warning" (worth a look) or "note".
        message: one sentence.
        items: the cases in words: paths, or pairs of paths, each with a reason; most severe first.
        images: for each item, the paths of its images, as in the data set; empty if the items are not about images.
    """

    kind: str
    severity: Severity
    message: str
    items: tuple[str, ...] = ()
    images: tuple[tuple[str, ...], ...] = ()

    @property
    def line(self) -> str:
        """One line of a log: severity, message and an example."""
        return with_example(f"{self.severity.capitalize()}: {self.message}", self.items)

    def brief(self, base: str) -> dict[str, Any]:
        """What a web page shows: the number of cases and the images of the first ones; a JSON document.

        Args:
            base: path or URL of the folder that the data set's paths are relative to.
        """
        cases = list(zip(self.items, self.images, strict=False))[:SHOWN_CASES]
        return {
            "kind": self.kind,
            "severity": self.severity,
            "message": self.message,
            "cases": len(self.items),
            "images": [[join(base, path), item] for item, paths in cases for path in paths],
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Finding:
        """Reads the document that ``dataclasses.asdict`` gives, also one of an earlier version.

        Raises:
            KeyError, TypeError: it is not such a document.
        """
        images = tuple(map(tuple, document.get("images", ())))
        kind = OLD_KINDS.get(document["kind"], document["kind"])
        return cls(**{**document, "kind": kind, "items": tuple(document["items"]), "images": images})
