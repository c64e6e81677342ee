"""The table of labels: edits by hand before, after and while a session is open, and tables of other programs."""

from __future__ import annotations

from pathlib import Path

import pytest
from labelling_sessions import label, named_session, open_images, truth, write_names

from headstart.errors import DataError, LabelError
from headstart.labelling import LabellingSession
from headstart.labelling.label_table import LabelTable


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_names(tmp_path / "photos", {"blue": 20, "green": 20, "red": 20})


@pytest.fixture
def table(folder: Path) -> Path:
    return folder.parent / "photos-labels.csv"


def labels_of(folder: Path) -> dict[str, list[str]]:
    """Name -> labels of the labelled images of a session that is opened for it."""
    with named_session(folder) as session:
        return {item["name"]: item["label"] for item in session.images("labelled", 0, 99)["items"]}


@pytest.mark.parametrize(
    ("encoding", "separator"), [("utf-8", ","), ("utf-8-sig", ","), ("cp1252", ";"), ("utf-16", "\t")]
)
def test_a_table_of_another_program_is_taken_in_its_encoding_and_dialect(
    folder: Path, table: Path, encoding: str, separator: str
) -> None:
    rows = [["path", "label"], ["photos/blue-1.jpg", "Märzenbecher"], ["photos/red-2.jpg", "œillet"]]
    table.write_text("".join(separator.join(row) + "\r\n" for row in rows), encoding=encoding, newline="")
    assert labels_of(folder) == {"blue-1.jpg": ["Märzenbecher"], "red-2.jpg": ["œillet"]}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("path,label\nphotos/blue-1.jpg,a\x01b\n", LabelError, r"photos-labels\.csv, row 2: .*cannot be seen"),
        (f"path,label\np,a\nphotos/blue-1.jpg,{'x' * 300}\n", LabelError, r"row 3: .* too long: .* 200 bytes"),
        ("path,label\nphotos/blue-1.jpg,a,b,c\n", DataError, r"photos-labels\.csv, row 2: 4 cells"),
        ("file,class\nphotos/blue-1.jpg,a\n", LabelError, r"expected columns path and label .*Found: file, class"),
        ("path,label,split\nphotos/blue-1.jpg,a,later\n", LabelError, r"row 2: split is 'later'"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(
    folder: Path, table: Path, text: str, error: type[Exception], message: str
) -> None:
    table.write_text(text)
    for _ in range(2):  # the first time left no lock behind
        with pytest.raises(error, match=message):
            LabellingSession.open(folder)
    assert table.read_text() == text
    assert not table.with_name("photos-labels.edited.csv").exists()


def edit(table: Path) -> str:
    """Changes the label of the first row by hand, and adds one; returns the text."""
    header, row, *rows = table.read_text().splitlines()
    path, _, *rest = row.split(",")
    added = "photos/blue-19.jpg,rare,train,grid,2026-12-01T00:00:00Z"
    text = "\n".join([header, ",".join([path, "edited", *rest]), *rows, added, ""])
    table.write_text(text)
    return text


def test_an_edit_after_the_session_is_taken_as_one_step_of_undo(folder: Path, table: Path) -> None:
    with named_session(folder) as session:
        label(session, open_images(session)[:6])
    edit(table)
    with named_session(folder) as session:
        labelled = [item["label"] for item in session.images("labelled", 0, 99)["items"]]
        assert labelled.count(["edited"]) == labelled.count(["rare"]) == 1
        assert session.undo()["changed"] != []
        assert session.images("labelled", 0, 99)["total"] == 6
    assert not table.with_name("photos-labels.edited.csv").exists()


def test_an_edit_between_the_last_action_and_the_end_of_the_session_is_taken_at_the_next_start(
    folder: Path, table: Path
) -> None:
    with named_session(folder) as session:
        label(session, open_images(session)[:6])
        edit(table)
    found = labels_of(folder)
    assert ["edited"] in found.values()
    assert found["blue-19.jpg"] == ["rare"]


def test_an_edit_while_the_session_is_open_is_kept_aside_and_can_be_imported(folder: Path, table: Path) -> None:
    with named_session(folder) as session:
        label(session, open_images(session)[:6])
        assert session.state()["edited_file"] is None
        text = edit(table)
        session.act({"do": "label", "images": open_images(session)[:1], "label": "red"})
        kept = table.with_name("photos-labels.edited.csv")
        assert session.state()["edited_file"] == str(kept)
        assert kept.read_text() == text
        assert "edited" not in table.read_text()
        session.load_labels(kept, "csv")
        assert "edited" in table.read_text()
        table.write_text("path,label\n")
        session.act({"do": "add class", "name": "more"})
        assert session.state()["edited_file"] == str(table.with_name("photos-labels.edited-2.csv"))
        assert kept.read_text() == text


def killed(session: LabellingSession) -> None:
    """Releases the lock as the system does when a process is killed."""
    session._file_lock.release()


def test_an_edit_after_a_kill_is_kept_aside_but_not_a_table_that_lags_behind(folder: Path, table: Path) -> None:
    with named_session(folder) as session:
        label(session, open_images(session)[:3])
        earlier = table.read_text()
        session.act({"do": "label", "images": open_images(session)[:2], "label": "green"})
        killed(session)
        table.write_text(earlier)
        again = LabellingSession.open(folder)
        assert again._table.kept is None
        killed(again)
        edit(table)
        again = LabellingSession.open(folder)
        kept = again._table.kept
        assert kept is not None
        assert "edited" in kept.read_text()
        assert "edited" not in table.read_text()
        again.close()


def test_a_table_that_nobody_edits_is_never_kept_aside(folder: Path, table: Path) -> None:
    own = LabelTable(table, multi_label=False)
    for text in ("one\n", "two\n", "two\n", "three\n"):
        own.write(text)
    table.unlink()  # removed by hand: nothing to keep
    own.write("four\n")
    assert own.kept is None
    assert [file.name for file in folder.parent.iterdir() if file.is_file()] == ["photos-labels.csv"]


def test_class_names_with_any_signs_survive_the_table_and_a_restart(folder: Path, table: Path) -> None:
    names = ["a/b\\c", 'he said "no", twice', "🌻", "<script>alert(1)</script>", "=1+1", "x" * 200, "'", "élan;|"]
    with named_session(folder) as session:
        for image, name in zip(open_images(session), names, strict=False):
            session.act({"do": "label", "images": [image], "label": name})
        before = {item["name"]: item["label"] for item in session.images("labelled", 0, 99)["items"]}
    table.with_name("photos-labels.journal.jsonl").unlink()  # the table alone
    assert labels_of(folder) == before
    assert sorted(name for (name,) in before.values()) == sorted(names)


def test_a_hundred_steps_are_undone_and_done_again(folder: Path, table: Path) -> None:
    with named_session(folder) as session:
        start, texts = table.read_text(), []
        images = open_images(session)
        for step in range(100):
            image = images[step % len(images)]
            session.act({"do": "label", "images": [image], "label": f"{truth(session.address(image))} {step}"})
            texts.append(table.read_text())
        for text in [*reversed(texts[:-1]), start]:
            session.undo()
            assert table.read_text() == text
        for text in texts:
            session.redo()
            assert table.read_text() == text


def test_labels_of_images_that_are_gone_are_counted_apart_and_stay_in_the_table(folder: Path, table: Path) -> None:
    table.write_text("path,label\nphotos/blue-1.jpg,sky\nphotos/gone.jpg,sky\nphotos/gone-2.jpg,sea\n")
    with named_session(folder) as session:
        state = session.state()
        assert (state["labelled"], state["missing"]) == (1, {"count": 2, "first": "photos/gone.jpg"})
        assert {one["name"]: one["labelled"] for one in state["classes"]} == {"sky": 1, "sea": 0}
        label(session, open_images(session)[:1])
        assert "photos/gone.jpg,sky" in table.read_text()
