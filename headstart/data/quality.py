"""Image quality: blank, dark, bright, blurred and tiny images and extreme aspect ratios, from the facts of a scan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headstart.data.preprocessing import CropMode
from headstart.data.scan import Scan

BLANK_RANGE = 12
"""Range of grey tones, of 256, that holds nearly all pixels of a blank image."""

DARK_BELOW = 110
"""99 % of a dark image's pixels have a largest channel below this, 0-255. The brightness of cleanvision would call dark
roses dark as well. Two of 4,776 photographs are below this limit, both taken at night."""

BRIGHT_ABOVE = 0.95 * 255
"""95 % of a bright image's pixels reach this grey tone. Source: cleanvision."""

BLURRED_BELOW = 0.11
"""Sharpness (see ``scan.FACTS``) below which an image is blurred. Of photographs blurred by 2 pixels at a size of 224,
99 % are below this limit; of 4,776 sharp ones, one is."""

TINY_BELOW = 64
"""Shorter side in pixels. A network with an input of 224 pixels receives an eighth of the information it could use."""

EXTREME_BELOW = 0.35
"""Ratio of the shorter to the longer side; a center crop shows about a third of the image. Source: cleanvision."""

EXTREME_SHOWN: dict[CropMode, str] = {
    "center": "the centre crop shows a third of the image or less, fit pad (--fit pad) shows all of it",
    "border": "most of the network's input is padding",
    "squash": "the network sees the image strongly distorted",
}
"""What the network sees of an extremely long or wide image."""

TYPICAL_SHARE = 0.2
"""Share of the images above which an issue is typical of the data, and not a fault of single images."""

UNUSED_BITS = 2
"""Unused bits per channel from which images look dark for that reason: at most a quarter of white."""

Values = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class QualityIssue:
    """Images with one kind of quality issue.

    Attributes:
        kind: code of the finding, such as "dark".
        words: of several such images, "blank: nearly a single colour".
        positions: of the images, most severe first.
        reasons: a few words for each.
        is_fault: whether it may impair training; otherwise it is only reported.
        is_typical: whether so many images have it that it is a property of the data.
    """

    kind: str
    words: str
    positions: tuple[int, ...]
    reasons: tuple[str, ...]
    is_fault: bool
    is_typical: bool


@dataclass(frozen=True)
class _Rule:
    """One kind of issue.

    Attributes:
        kind: code of the finding.
        words: see ``QualityIssue``; a format string, whose argument "shown" is from ``EXTREME_SHOWN``.
        reason: format string; its arguments are the measure's absolute value, and width w and height h.
        measure: facts -> (N,) severity; the most severe has the lowest value.
        limit: images with a measure below it have the issue.
        is_fault: see ``QualityIssue``.
        of_tones: whether the rule uses brightness; such rules skip blank images and images with unused bits.
    """

    kind: str
    words: str
    reason: str
    measure: Callable[[npt.NDArray[Any]], Values]
    limit: float
    is_fault: bool
    of_tones: bool


def _tone_range(facts: npt.NDArray[Any]) -> Values:
    low, _, high = facts["tones"].astype(np.float64).T
    return np.asarray(high - low)


def _sides(facts: npt.NDArray[Any]) -> tuple[Values, Values]:
    """(N,) shorter and longer side in pixels."""
    sides = np.stack([facts["width"], facts["height"]]).astype(np.float64)
    return sides.min(axis=0), sides.max(axis=0)


RULES = (
    _Rule(
        "dark",
        "nearly black",
        "99 % of the pixels below {:.0f} of 255",
        lambda facts: facts["brightest"].astype(np.float64),
        DARK_BELOW,
        is_fault=True,
        of_tones=True,
    ),
    _Rule(
        "bright",
        "nearly white",
        "95 % of the pixels above {:.0f} of 255",
        lambda facts: -facts["tones"][:, 1].astype(np.float64),
        -BRIGHT_ABOVE,
        is_fault=True,
        of_tones=True,
    ),
    _Rule(
        "blurred",
        "blurred, or enlarged from a few pixels",
        "sharpness {:.2f}",
        lambda facts: facts["sharpness"].astype(np.float64),
        BLURRED_BELOW,
        is_fault=False,
        of_tones=True,
    ),
    _Rule(
        "tiny",
        f"tiny: a side under {TINY_BELOW} pixels",
        "{w} x {h} pixels",
        lambda facts: _sides(facts)[0],
        TINY_BELOW,
        is_fault=False,
        of_tones=False,
    ),
    _Rule(
        "extreme-aspect-ratio",
        "extremely long or wide: {shown}",
        "{w} x {h} pixels",
        lambda facts: _sides(facts)[0] / np.maximum(1, _sides(facts)[1]),
        EXTREME_BELOW,
        is_fault=False,
        of_tones=False,
    ),
)
"""Registry of quality rules; "blank" comes before them, since a blank image is not dark, bright or blurred as well."""

_BLANK = _Rule(
    "blank", "blank: nearly a single colour", "tones within {:.0f} of 255", _tone_range, BLANK_RANGE, True, True
)


def unused_bits(scanned: Scan) -> dict[int, int]:
    """Bit depths of which no image uses all bits: bits per channel -> bits that the largest value of all needs."""
    facts = scanned.facts[scanned.usable]
    used = {int(bits): int(facts["used_bits"][facts["bits"] == bits].max()) for bits in np.unique(facts["bits"])}
    return {bits: most for bits, most in used.items() if bits > 8 and bits - most >= UNUSED_BITS}


def describe_unused_bits(count: int, bits: int, used: int) -> str:
    """A clause about images that use few of their bits."""
    white = f"{100 / 2 ** (bits - used):.2g} % of white"
    return (
        f"{count:,} image(s) have {bits} bits per channel and use {used} of them: scaled by the full range, their "
        f"brightest pixel has {white}"
    )


def quality_issues(scanned: Scan, *, is_scaled: bool = False, crop_mode: CropMode = "center") -> list[QualityIssue]:
    """The quality issues of all usable images.

    Args:
        scanned: facts of N files.
        is_scaled: whether images of more than 8 bits per channel were scaled by a value range. If they were not and use
            few of their bits, rules on brightness are skipped.
        crop_mode: how images are fitted into the network's input.
    """
    facts, usable = scanned.facts, scanned.usable
    judged = usable if is_scaled else usable & ~np.isin(facts["bits"], list(unused_bits(scanned)))
    blank = judged & (_BLANK.measure(facts) < _BLANK.limit)
    found = [_issue(_BLANK, facts, blank, usable, crop_mode)]
    for rule in RULES:
        candidates = judged & ~blank if rule.of_tones else usable
        found.append(_issue(rule, facts, candidates & (rule.measure(facts) < rule.limit), usable, crop_mode))
    return [issue for issue in found if issue.positions]


def _issue(rule: _Rule, facts: npt.NDArray[Any], mask: Mask, usable: Mask, crop_mode: CropMode) -> QualityIssue:
    values = rule.measure(facts)
    places = np.flatnonzero(mask)
    places = places[np.argsort(values[places], kind="stable")]
    reasons = tuple(rule.reason.format(abs(values[i]), w=facts["width"][i], h=facts["height"][i]) for i in places)
    is_typical = len(places) > max(1.0, TYPICAL_SHARE * usable.sum())
    words = rule.words.format(shown=EXTREME_SHOWN[crop_mode])
    return QualityIssue(rule.kind, words, tuple(places.tolist()), reasons, rule.is_fault, is_typical)
