"""The examples, run as their readers run them."""

from __future__ import annotations

import runpy
from pathlib import Path

from photographs import photographs

import headstart as hs

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_a_loop_by_hand_reaches_what_the_built_in_one_reaches(tmp_path: Path) -> None:
    """Within noise: three standard deviations of a difference between two counts of the same images."""
    data = str(photographs("hymenoptera"))
    model = runpy.run_path(str(EXAMPLES / "custom_loop.py"))["fine_tune"](data)
    built_in = hs.train(data, out=tmp_path / "run", effort="quick", unfreeze="blocks.6", epochs=6, views=3)
    ours, theirs = (
        model.scores["val"]["correct"],
        next(r for r in built_in.rungs if r.name == "behind blocks.5").correct,
    )
    assert abs(ours - theirs) <= 3 * (2 * 153 * 0.05 * 0.95) ** 0.5
    assert ours >= 0.935 * 153
