"""Pictures that are hardly any: blank, dark, bright, blurred, tiny, of an odd shape; told from the facts of a scan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headstart.data.scan import Scan

BLANK_RANGE = 12
"""Grey tones, of 256, that nearly all pixels of a blank picture lie within."""

DARK_BELOW = 110
"""What the largest channel of 99 % of a dark picture's pixels stays below, 0-255; cleanvision's brightness would call
dark roses dark as well. Of 4,776 photographs two lie below, both taken at night (LOG.md)."""

BRIGHT_ABOVE = 0.95 * 255
"""Grey tone that 95 % of a bright picture's pixels reach. Source: cleanvision."""

BLURRED_BELOW = 0.11
"""Sharpness (see ``scan.FACTS``). Of photographs blurred by 2 pixels at 224, 99 % lie below; of 4,776 as they are, one
does (LOG.md)."""

TINY_BELOW = 64
"""Shorter side, in pixels: a network that sees 224 gets an eighth of what it could see."""

ODD_BELOW = 0.35
"""Shorter side over longer side; a crop in the middle then shows about a third. Source: cleanvision."""

NATURE = 0.2
"""Share of the pictures from which on an oddity is what these data are like, and no fault of single pictures."""


@dataclass(frozen=True)
class QualityIssue:
    """Pictures that are odd in one way.

    Attributes:
        kind: a short stable name, "dark".
        words: of many such pictures, "dark: 99 % of their pixels ...".
        positions: of the pictures, the oddest first.
        reasons: of each, a few words.
        fault: whether it may spoil what is learnt, rather than be worth a look alone.
        nature: whether so many are so that it is what the data are like.
    """

    kind: str
    words: str
    positions: tuple[int, ...]
    reasons: tuple[str, ...]
    fault: bool
    nature: bool


UNUSED_BITS = 2
"""Bits per channel that no image uses, from which on the images are dark for that reason: a quarter of white."""


def unused_bits(scanned: Scan) -> dict[int, int]:
    """Bits per channel of the files -> how many of them the largest value of all such images uses, where few are."""
    facts = scanned.facts[scanned.usable]
    used = {int(bits): int(facts["used_bits"][facts["bits"] == bits].max()) for bits in np.unique(facts["bits"])}
    return {bits: most for bits, most in used.items() if bits > 8 and bits - most >= UNUSED_BITS}


def quality_issues(scanned: Scan, *, scaled: bool = False) -> list[QualityIssue]:
    """Every way in which any usable picture is odd; a blank one is called neither dark nor bright nor blurred.

    Args:
        scanned: a look at N files.
        scaled: whether images of more than 8 bits per channel were scaled by a range of values. Where they were not
            and use few of their bits, nothing is said of their tones.
    """
    facts, usable = scanned.facts, scanned.usable
    judged = usable if scaled else usable & ~np.isin(facts["bits"], list(unused_bits(scanned)))
    low, darker, high = facts["tones"].astype(np.float64).T
    brightest = facts["brightest"].astype(np.float64)
    short = np.minimum(facts["width"], facts["height"]).astype(np.float64)
    shape = short / np.maximum(1, np.maximum(facts["width"], facts["height"]))
    blank = judged & (high - low < BLANK_RANGE)
    seen = judged & ~blank
    sharp = facts["sharpness"].astype(np.float64)

    def odd(
        kind: str, words: str, found: npt.NDArray[np.bool_], by: npt.NDArray[np.float64], reason: str
    ) -> QualityIssue:
        places = np.flatnonzero(found)
        places = places[np.argsort(by[places], kind="stable")]
        reasons = tuple(
            reason.format(abs(by[place]), w=facts["width"][place], h=facts["height"][place]) for place in places
        )
        nature = len(places) > max(1.0, NATURE * usable.sum())
        fault = kind in ("blank", "dark", "bright")
        return QualityIssue(kind, words, tuple(places.tolist()), reasons, fault, nature)

    found = [
        odd("blank", "blank: nearly one colour all over", blank, high - low, "tones within {:.0f} of 255"),
        odd(
            "dark", "nearly black", seen & (brightest < DARK_BELOW), brightest, "99 % of the pixels below {:.0f} of 255"
        ),
        odd(
            "bright", "nearly white", seen & (darker > BRIGHT_ABOVE), -darker, "95 % of the pixels above {:.0f} of 255"
        ),
        odd(
            "blurred",
            "blurred, or enlarged from a few pixels",
            seen & (sharp < BLURRED_BELOW),
            sharp,
            "sharpness {:.2f}",
        ),
        odd(
            "tiny", f"tiny: a side under {TINY_BELOW} pixels", usable & (short < TINY_BELOW), short, "{w} x {h} pixels"
        ),
        odd(
            "extreme-aspect-ratio",
            "of an odd shape: most of it is cropped away",
            usable & (shape < ODD_BELOW),
            shape,
            "{w} x {h} pixels",
        ),
    ]
    return [own for own in found if own.positions]
