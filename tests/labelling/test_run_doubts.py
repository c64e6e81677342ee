"""Labels that a trained run contradicts come back for a second look."""

from __future__ import annotations

from pathlib import Path

import pytest
from labelling_sessions import label, named_session, open_images, truth, write_names

from headstart.data.label_cells import SEPARATOR
from headstart.labelling.run_doubts import contradicted_labels

HEADER = "path,split,label,predicted,probability,outlier,p:blue,p:red\n"


def write_run(folder: Path, rows: dict[str, str]) -> Path:
    """A run folder with the given rows of each table."""
    folder.mkdir()
    for name, text in rows.items():
        (folder / name).write_text(HEADER + text)
    return folder


def test_predictions_for_val_and_in_cross_validation_contradict_labels_and_those_for_test_do_not(
    tmp_path: Path,
) -> None:
    run = write_run(
        tmp_path / "run",
        {
            "cross-validation.csv": "a.jpg,cross-validation,blue,red,0.7,,0.3,0.7\n"
            "b.jpg,cross-validation,blue,red,0.9,,0.1,0.9\n",
            "predictions.csv": "b.jpg,val,blue,blue,0.8,,0.8,0.2\n"
            "c.jpg,val,red,blue,0.95,,0.95,0.05\n"
            "d.jpg,test,red,blue,0.99,,0.99,0.01\n"
            "e.jpg,val,red,red,0.6,,0.4,0.6\n",
        },
    )
    found = contradicted_labels(run)
    assert [(one.path, one.labels, one.predicted) for one in found] == [
        ("c.jpg", ("red",), "blue"),
        ("a.jpg", ("blue",), "red"),
    ]


def test_a_run_without_readable_predictions_contradicts_nothing(tmp_path: Path) -> None:
    assert contradicted_labels(tmp_path / "none") == []
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "predictions.csv").write_text("path,other\na.jpg,1\n")
    assert contradicted_labels(tmp_path / "run") == []


def test_of_several_labels_the_one_that_differs_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    table = "path,split,labels,predicted,outlier,p:blue,p:red\na,val,blue,blue;red,,0.9,0.8\n"
    table += "b,val,blue;red,red,,0.1,0.9\nc,val,red;blue,blue;red,,0.9,0.9\nd,val,,red,,0.1,0.6\n"
    (tmp_path / "run" / "predictions.csv").write_text(table.replace(";", SEPARATOR))
    found = {one.path: (one.predicted, one.probability) for one in contradicted_labels(tmp_path / "run")}
    assert found == {"a": ("red", 0.8), "b": ("blue", 0.1), "d": ("red", 0.6)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_names(tmp_path / "photos", {"blue": 30, "green": 30, "red": 30})


def test_what_the_trained_model_contradicts_is_offered_first_until_it_was_looked_at(folder: Path) -> None:
    with named_session(folder) as session:
        images = open_images(session)
        label(session, images)
        blind = session.blind(1000)["items"][0]["id"]
        label(session, [blind])
        one, two = [image for image in images if truth(session.address(image)) == "blue"][:2]
        rows = [
            f"photos/{Path(session.address(image)).name},val,{truth(session.address(image))},red,0.9,,0.1,0.9\n"
            for image in (one, two, blind)
        ]
        run = write_run(folder.parent / "photos-run", {"predictions.csv": "".join(rows)})
        assert session.mistakes(10)["items"] == []
        items = session.mistakes(10, run)["items"]
        assert [(item["id"], item["suggestion"]["label"], item["by_run"]) for item in items] == [
            (one, "red", True),
            (two, "red", True),
        ]
        session.act({"do": "keep", "images": [one]})
        session.act({"do": "label", "images": [two], "label": "green"})  # changed since the run
        assert session.wait_learnt(60)
        assert [item["by_run"] for item in session.mistakes(10, run)["items"] if item["id"] in (one, two)] in (
            [],
            [False],  # the classifier of the session may doubt the new label
        )
