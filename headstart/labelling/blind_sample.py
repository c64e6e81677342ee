"""The blind sample: images drawn at random before any suggestion is shown, to measure an honest accuracy.

The images are drawn by content hash with the seed of the session; images of one stack are one draw. The sample is a
prefix of one order of all images, so that it stays random when it is enlarged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from headstart.data.splits import draw
from headstart.labelling.frozen_pass import PassResult

LEAST, MOST, SHARE = 30, 100, 0.06
"""Default size: a share of the images within these bounds."""

MOST_OF_ALL: Final = 0.5
"""Share of the images that the default size never exceeds."""


def default_size(count: int) -> int:
    """The size of the sample of a number of stacks."""
    return min(int(MOST_OF_ALL * count), max(LEAST, min(MOST, round(SHARE * count))))


def draw_order(result: PassResult, seed: int) -> list[int]:
    """First images of the stacks of usable images, in the order of the draw.

    Args:
        result: of the pass.
        seed: of the session.
    """
    places = [
        (min(draw(result.keys[m], seed=seed) for m in result.stacks.members(image) if result.usable[m]), image)
        for image in range(len(result.keys))
        if result.usable[image] and result.stacks.is_first(image)
    ]
    return [image for _, image in sorted(places)]


def enlarged(
    before: Sequence[str], order: Sequence[int], paths: Sequence[str], members: Sequence[Sequence[int]], count: int
) -> tuple[str, ...]:
    """The sample with more stacks.

    Args:
        before: paths of the sample.
        order: of the draw, see ``draw_order``.
        paths: of all images.
        members: images of the stack of each image of ``order``.
        count: stacks to add.
    """
    found, have, added = list(before), set(before), 0
    for image, stack in zip(order, members, strict=True):
        if added == count:
            break
        if paths[image] not in have:
            found += [paths[member] for member in stack if paths[member] not in have]
            have.update(found)
            added += 1
    return tuple(found)
