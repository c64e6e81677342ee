"""The examples, run as their readers run them; after the timed tests, whose caches must be cold."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from photographs import photographs

import headstart as hs

pytestmark = [pytest.mark.untimed, pytest.mark.share]

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_a_loop_by_hand_reaches_what_the_built_in_one_reaches(tmp_path: Path) -> None:
    """Within noise: three standard deviations of a difference between two counts of the same images."""
    data = str(photographs("hymenoptera"))
    model = runpy.run_path(str(EXAMPLES / "custom_loop.py"))["fine_tune"](data, epochs=4)
    built_in = hs.train(data, out=tmp_path / "run", effort="quick", unfreeze="blocks.6", epochs=4, views=3)
    ours, theirs = (
        model.scores["val"]["correct"],
        next(r for r in built_in.rungs if r.name == "fine-tune from blocks.6").correct,
    )
    assert abs(ours - theirs) <= 3 * (2 * 153 * 0.05 * 0.95) ** 0.5
    assert ours >= 0.935 * 153


def test_flowers_behind_imagenets_classes(tmp_path: Path) -> None:
    """Flowers are classified as accurately as by a model trained on them alone (508/550), and old classes are kept."""
    others = tmp_path / "others"
    others.mkdir()
    for name in ("cats_dogs", "hotdog", "hymenoptera", "urban_rural"):
        (others / name).symlink_to(photographs(name))
    run = hs.train(photographs("flowers"), out=tmp_path / "run", extend="pretrained", rehearsal=str(others))
    assert run.results["val, new classes only"].correct >= 508 - 0.015 * 550
    assert run.results["old classes"].count > 800
    assert run.results["old classes"].accuracy > 0.99  # right is what was said before
    assert run.results["val"].accuracy > 0.8


@pytest.mark.parametrize(
    ("name", "stand_in", "least"),
    [
        ("cats_dogs", "cats_dogs", 0.97),
        ("hot_dog", "hotdog", 0.90),
        ("foods", "flowers", 0.915),
        ("flowers", "flowers", 0.915),
        ("city_country", "urban_rural", 0.9),
    ],
)
def test_the_tutorials_run_shortened_and_headstart_reaches_the_probes_bar(
    name: str,
    stand_in: str,
    least: float,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    main = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]
    rows = main([str(photographs(stand_in)), "--short", "--out", str(tmp_path / "runs")])
    assert rows[-1].scores.accuracy >= least
    said = capsys.readouterr().out
    for piece in ("The tutorial gives: ", "the offline default is used instead", "Trap: ", "95 %"):
        assert piece in said
    assert all(row.way in said for row in rows)
    if name == "city_country":
        assert "to the last bit: yes" in said
