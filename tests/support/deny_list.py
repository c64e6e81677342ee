"""Words and phrases that are not used in help, messages, docstrings, comments, reports, pages and documents."""

from __future__ import annotations

import re

DENIED = {
    r"gravest": "most severe",
    r"(is|are) spared": "skipped",
    r"in this moment|at that moment": "live, current",
    r"as sure as they are right": "temperature scaling",
    r"was come by": "why this was chosen",
    r"\b0: (the default|10\b|what)": "auto",
    r"must bring": "must send",
    r"first breath": "main loop",
    r"say what it is": "the label is empty",
    r"\bways? to (train|tune|fine-tune)\b|\bin several ways\b": "method",
    r"\bsurest\b": "most confident",
    r"at their word": "calibration",
    r"\d+ of \d+ right\b": "percent first, then count: 92.4 % (508/550)",
    r"\bbears?\b": "has",
    r"made if it is not there|if it is not there": "created if it does not exist",
    r"cannot be put together": "cannot be loaded",
    r"on two sides|changes? sides": "divided between train and validation",
    r"what it gave is kept": "its features are cached",
    r"\bpictures?\b": "image",
    r"\btells? the rest\b": "name it",
    r"\btold\b": "flagged, given",
    r"\bits own\b|(?<!none )\bof these\b|\ball of them\b": "name the thing",
    r"\bdoes not know\b": "unknown",
    r"\banew\b": "again",
    r"\bmirrored picture\b": "mirrored image",
    r"\bgoes on learning\b": "is updated",
    r"\bweigh the classes alike\b": "weight each class equally",
    r"cannot be had": "cannot be loaded",
    r"where it is not given|where none is named": "if None, default",
    r"where there is none": "without one",
    r"value that it cannot take": "invalid value",
    r"was made anew|\bcome by\b": "recreated, obtained",
}
"""Regular expression, case-insensitive -> replacement."""


def denied_words(text: str) -> list[str]:
    """Matches of ``DENIED`` in a text, each with its replacement."""
    return [
        f"{found[0]!r}: write {instead!r}"
        for pattern, instead in DENIED.items()
        for found in re.finditer(pattern, text, re.IGNORECASE)
    ]
