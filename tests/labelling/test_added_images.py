"""Images that are added to an open session: computed in the background, and learnt from without a restart."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from labelling import opened_session, wait_for, write_unlabelled
from labelling_sessions import label, named_session, open_images, result_of, truth, write_names
from random_images import COLOURS, random_image

from headstart.data.duplicates import DuplicatePair
from headstart.errors import CacheError
from headstart.labelling.frozen_pass import PassProgress, PassResult, PassStopped

COUNTS = {"blue": 40, "green": 40, "red": 40}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_names(tmp_path / "photos", COUNTS)


@pytest.fixture
def more(tmp_path: Path) -> list[Path]:
    """Images outside the folder of the session."""
    return sorted(write_names(tmp_path / "more", {"green": 45}).glob("green-4[0-4].jpg"))


def test_suggestions_learn_a_class_from_added_images_without_a_restart(folder: Path, more: list[Path]) -> None:
    with named_session(folder) as session:
        named = [i for i in open_images(session) if truth(session.address(i)) != "green"]
        label(session, named[::4])
        for file in more:
            session.add_file(file, "green")
        assert session.wait_learnt(60)
        assert session.learning is not None
        learnt = session.learning.learnt
        assert learnt is not None
        assert learnt.classes == ("blue", "red", "green")
        assert learnt.labels == len(named[::4]) + len(more)
        assert len(learnt.probabilities) == len(session.learning.vectors) == 125
        green = [i for i in open_images(session) if truth(session.address(i)) == "green"]
        assert len(green) > 9
        assert {session.images("all", i, 1)["items"][0]["suggestion"]["label"] for i in green} == {"green"}


def test_an_added_image_whose_label_is_removed_is_asked_about(folder: Path, more: list[Path]) -> None:
    with named_session(folder) as session:
        label(session, open_images(session)[::3])
        may_go, compute = threading.Event(), session._added._compute
        session._added._compute = lambda *given: compute(*given) if may_go.wait(20) else result_of([])
        image = session.add_file(more[0], "green")["id"]
        session.undo()
        assert image not in [item["id"] for item in session.ask(200)["items"]]  # its features are not known yet
        may_go.set()
        assert session.wait_learnt(60)
        assert image in [item["id"] for item in session.ask(200)["items"]]
        assert image in [item["id"] for item in session.confirm("green", 200)["items"]]


def test_an_added_near_duplicate_of_a_blind_image_is_blind_and_not_learnt(folder: Path, more: list[Path]) -> None:
    with named_session(folder) as session:
        blind = session.blind(1)["items"][0]["id"]
    with named_session(folder, pairs=(DuplicatePair(blind, 120, False),)) as session:
        label(session, open_images(session)[::3])
        assert session.learning is not None
        assert session.learning.learnt is not None
        labels = session.learning.learnt.labels
        session.add_file(more[0], "green")
        assert session.wait_learnt(60)
        assert session.learning.learnt.labels == labels
        row = next(row for row in session.files.table.read_text().splitlines() if row.startswith("more/"))
        assert row.split(",")[:3] == ["more/green-40.jpg", "green", "test"]
        assert session.state()["undo"].startswith("label")  # joining the sample is no step of undo
        session.add_file(more[1], "green")  # near no other image
        assert session.wait_learnt(60)
        assert session.learning.learnt.labels == labels + 1


def test_what_fails_is_computed_with_the_next_image(
    folder: Path, more: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with named_session(folder) as session:
        label(session, open_images(session)[::3])

        def full(*_: object) -> PassResult:
            raise CacheError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(session._added, "_compute", full)
            session.add_file(more[0], "green")
            assert session.wait_learnt(60)
            assert session.learning is not None
            assert len(session.learning.vectors) == 120
        session.add_file(more[1], "green")
        assert session.wait_learnt(60)
        assert len(session.learning.vectors) == 122


def test_a_session_that_is_closed_does_not_wait_for_an_added_image(folder: Path, more: list[Path]) -> None:
    begun = threading.Event()

    def slow(_before: PassResult, _addresses: list[str], progress: PassProgress) -> PassResult:
        begun.set()
        while True:
            progress.advance(0)

    with named_session(folder) as session:
        session._added._compute = slow
        session.add_file(more[0], "green")
        assert begun.wait(20)
        session.close()
        assert session._added.wait(0)
        with pytest.raises(PassStopped):
            session._added._progress.advance(1)


@pytest.mark.usefixtures("small_networks")
@pytest.mark.slow
def test_joined_images_have_the_features_stacks_and_faults_of_a_pass_over_all(tmp_path: Path) -> None:
    folder = write_unlabelled(tmp_path / "images", 40)
    added = tmp_path / "images-corrections"
    added.mkdir()
    random_image(90, COLOURS["red"]).save(added / "1.png")
    random_image(2, COLOURS[list(COLOURS)[2]]).save(added / "2.jpg", quality=95)  # a near-duplicate of the third image
    (added / "3.png").write_bytes(b"no image")
    with opened_session(folder) as backend:
        session = backend.session
        assert session.wait_ready(120)
        for file in sorted(added.iterdir()):
            session.add_file(file, "red")
        assert session.wait_learnt(60)
        assert session.learning is not None
        one = session.learning.result
        assert session.state()["work"]["failures"][0]["path"].endswith("3.png")
    with opened_session(folder) as backend:  # opened again: a pass over all
        assert backend.session.wait_ready(120)
        assert backend.session.learning is not None
        other = backend.session.learning.result
    assert one.keys == other.keys
    assert one.faults.keys() == other.faults.keys() == {42}
    assert one.stacks.members(2) == other.stacks.members(2) == [2, 41]
    assert np.array_equal(one.sizes, other.sizes)
    assert np.array_equal(one.features, other.features)


def test_a_correction_of_a_trained_model_is_learnt_from(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "photos-corrections" / "red" / "0f3a.jpg"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"a red one")
    with named_session(folder) as session:
        label(session, open_images(session)[:9])
        image = session.add_file(file, "red")["id"]
        wait_for(lambda: session.state()["learner"]["labels"] == 10)
        assert session.learning is not None
        assert np.allclose(session.learning.result.features[image], result_of([str(file)]).features[0])
