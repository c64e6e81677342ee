"""Findings: what is wrong with a data set, or worth knowing about it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Severity = Literal["serious", "warning", "note"]


SHOWN_CASES = 12
"""Cases of a finding whose images a page shows."""


@dataclass(frozen=True)
class Finding:
    """One kind of trouble and where it is.

    Attributes:
        kind: a short stable name, "unreadable".
        severity: "serious" (distorts the result), "warning" (worth a look) or "note".
        message: one sentence.
        items: the paths, or pairs of paths, each with its reason; the most severe first.
        images: of each item, the paths of the images that it is about, as the data set has them; empty where the items
            are not about images.
    """

    kind: str
    severity: Severity
    message: str
    items: tuple[str, ...] = ()
    images: tuple[tuple[str, ...], ...] = ()

    def brief(self, base: Path) -> dict[str, Any]:
        """What a page shows of it: the number of its cases, and the images of the first ones; a JSON document.

        Args:
            base: folder that the data set's paths are relative to.
        """
        cases = list(zip(self.items, self.images, strict=False))[:SHOWN_CASES]
        return {
            "kind": self.kind,
            "severity": self.severity,
            "message": self.message,
            "cases": len(self.items),
            "images": [[os.path.join(base, path), item] for item, paths in cases for path in paths],
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Finding:
        """Back from the document that ``dataclasses.asdict`` gives.

        Raises:
            KeyError, TypeError: it is none.
        """
        images = tuple(map(tuple, document.get("images", ())))
        return cls(**{**document, "items": tuple(document["items"]), "images": images})
