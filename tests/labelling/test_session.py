"""A session as a whole: labels, undo, restart, lock, table, queues and honest accuracy."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock, Timeout
from labelling_sessions import HIDDEN, label, named_session, open_images, truth, write_names

import headstart as hs
from headstart.data.duplicates import DuplicatePair
from headstart.errors import DataError, LabelError, OptionError, OutputError, StaleAction
from headstart.labelling import LabellingSession
from headstart.labelling.label_state import Answer, LabelChange, LabelState
from headstart.labelling.learner import CERTAIN
from headstart.labelling.learning import SessionLearning
from headstart.labelling.overview import folders_of

COUNTS = {"blue": 40, "green": 40, "red": 40}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_names(tmp_path / "photos", COUNTS)


def rows(session: LabellingSession) -> dict[str, str]:
    dataset = hs.open_data(session.files.table, min_classes=1)
    return {path: dataset.classes[i] for path, i in zip(dataset.paths, dataset.labels, strict=True)}


def test_labels_are_in_a_table_that_training_reads_and_survive_without_a_close(folder: Path) -> None:
    with named_session(folder) as session:
        chosen = open_images(session)[:5]
        label(session, chosen)
        table = rows(session)
        assert table == {f"photos/{Path(session.address(i)).name}": truth(session.address(i)) for i in chosen}
        assert hs.open_data(session.files.table, min_classes=1).splits == ("train",) * 5
        session._file_lock.release()  # as the system does when a process is killed
        session.files.table.unlink()  # killed before the table was written
        again = LabellingSession.open(folder)
        assert rows(again) == table
        again.close()


def test_the_images_are_untouched_and_nothing_is_written_into_their_folder(folder: Path) -> None:
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}
    with named_session(folder) as session:
        label(session, open_images(session)[:9])
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()} == before
    assert sorted(p.name for p in folder.parent.iterdir()) == [
        "photos",
        "photos-labels.csv",
        "photos-labels.journal.jsonl",
    ]


def test_undo_and_redo_of_labels_and_classes_over_a_restart(folder: Path) -> None:
    with named_session(folder) as session:
        one, two = open_images(session)[:2]
        session.act({"do": "label", "images": [one], "label": "rose"})
        session.act({"do": "label", "images": [two], "label": "tulip"})
        session.act({"do": "merge class", "name": "tulip", "into": "rose"})
        assert session.state()["undo"] == "merge class tulip into rose"
    with named_session(folder) as session:
        assert set(rows(session).values()) == {"rose"}
        session.undo()
        assert set(rows(session).values()) == {"rose", "tulip"}
        session.undo()
        session.undo()
        assert (rows_or_none(session), session.state()["classes"]) == ({}, [])
        for _ in range(3):
            session.redo()
        assert set(rows(session).values()) == {"rose"}
        with pytest.raises(StaleAction, match="nothing to redo"):
            session.redo()


def rows_or_none(session: LabellingSession) -> dict[str, str]:
    return rows(session) if session.files.table.read_text().count("\n") > 1 else {}


def test_a_second_session_of_the_same_labels_says_where_the_first_is(folder: Path) -> None:
    with named_session(folder) as session:
        session.served_at("http://127.0.0.1:8300/")
        with pytest.raises(LabelError, match=r"another process is labelling these images at http://127\.0\.0\.1:8300/"):
            LabellingSession.open(folder)
    LabellingSession.open(folder).close()


def test_an_action_on_a_class_that_another_tab_renamed_changes_nothing(folder: Path) -> None:
    with named_session(folder) as session:
        image = open_images(session)[0]
        session.act({"do": "label", "images": [image], "label": "rose"})
        session.act({"do": "rename class", "name": "rose", "to": "tulip"})
        before, revision = session.files.journal.read_bytes(), session.revision
        with pytest.raises(StaleAction, match="no class 'rose' any more"):
            session.act({"do": "confirm", "label": "rose", "images": [image], "rejected": []})
        assert (session.files.journal.read_bytes(), session.revision) == (before, revision)


def test_two_tabs_at_once_lose_no_label(folder: Path) -> None:
    with named_session(folder) as session:
        images = open_images(session)
        halves = images[::2], images[1::2]

        def work(part: list[int]) -> None:
            for image in part:
                session.act({"do": "label", "images": [image], "label": truth(session.address(image))})

        threads = [threading.Thread(target=work, args=(part,)) for part in halves]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(rows(session)) == len(images)
        assert session.files.table.read_text() == session._table.text(session._journal.state)


def test_images_of_a_stack_are_shown_once_and_labelled_together(folder: Path) -> None:
    pairs = (DuplicatePair(0, 1, False), DuplicatePair(0, 2, True), DuplicatePair(1, 3, False))
    with named_session(folder, pairs=pairs) as session:
        first = session.images("all", 0, 2)["items"]
        assert [(item["id"], item["stack"]) for item in first] == [(0, 3), (3, 1)]  # 3 is no near copy of 0
        assert session.act({"do": "label", "images": [0], "label": "blue"})["changed"] == [0, 1, 2]
        assert session.images("class:blue", 0, 9)["total"] == 1
        assert len(rows(session)) == 3


def test_the_blind_sample_has_no_suggestion_and_is_in_no_queue_and_no_training(folder: Path) -> None:
    with named_session(folder) as session:
        blind = {item["id"] for item in session.blind(1000)["items"]}
        assert len(blind) == 30
        label(session, open_images(session)[:40])
        assert session.learning is not None
        learnt = session.learning.learnt
        assert learnt is not None
        shown = session.images("all", 0, 1000)["items"]
        assert all(item["suggestion"] is None for item in shown if item["id"] in blind)
        assert any(item["suggestion"] for item in shown)
        queued = [item["id"] for item in session.ask(1000)["items"] + session.confirm(None, 1000)["items"]]
        queued += [image for cluster in session.clusters() for image in cluster["examples"]]
        queued += [
            i["id"] for k in range(len(session.clusters())) for i in session.images(f"cluster:{k}", 0, 99)["items"]
        ]
        assert not blind & set(queued)
        label(session, sorted(blind))
        assert session.learning.learnt is not None
        assert session.learning.learnt.labels == learnt.labels  # labels of blind images are not learnt
        items = session.images("all", 0, 1000)["items"]
        assert {(i["split"], i["source"]) for i in items if i["id"] in blind} == {("test", "blind")}
        splits = hs.open_data(session.files.table).splits
        assert splits is not None
        assert splits.count("test") == 30


def test_the_blind_sample_follows_from_content_and_seed_and_only_grows(folder: Path) -> None:
    def drawn(seed: int, labels: str) -> set[str]:
        with named_session(folder, seed=seed, labels=folder.parent / labels) as session:
            return {Path(session.address(item["id"])).name for item in session.blind(1000)["items"]}

    one = drawn(0, "one.csv")
    assert one == drawn(0, "two.csv")
    assert one != drawn(1, "three.csv")
    with named_session(folder, labels=folder.parent / "one.csv") as session:
        session.act({"do": "more blind", "count": 20})
        more = {Path(session.address(item["id"])).name for item in session.blind(1000)["items"]}
    assert more > one
    assert len(more) == 50


def test_a_label_given_before_an_image_joined_the_blind_sample_does_not_count(folder: Path) -> None:
    with named_session(folder) as session:
        label(session, open_images(session))
        session.act({"do": "more blind", "count": 20})
        label(session, [])
        left = session.blind(1000)
        assert left["total"] == 50
        label(session, [item["id"] for item in left["items"]])
        assert session.state()["blind"] == {"wanted": 50, "labelled": 50}


def test_the_accuracy_shown_falls_if_the_labels_are_wrong(folder: Path) -> None:
    with named_session(folder) as session:
        assert session.state()["accuracy"] is None
        blind = [item["id"] for item in session.blind(1000)["items"]]
        label(session, blind)
        images = open_images(session)
        label(session, images)
        good = session.state()["accuracy"]
        assert good["correct"] == good["count"] == 30
        assert good["sentence"] == "accuracy 100.0 % (30/30), 95 % CI 88.6-100.0"
        wrong = {"blue": "green", "green": "red", "red": "blue"}
        for name, other in wrong.items():
            chosen = [image for image in images if truth(session.address(image)) == name]
            session.act({"do": "label", "images": chosen, "label": other})
        assert session.wait_learnt(60)
        assert session.state()["accuracy"]["correct"] == 0


def test_confirm_offers_one_class_and_what_was_unticked_is_not_offered_again(folder: Path) -> None:
    with named_session(folder) as session:
        label(session, open_images(session)[::9])
        page = session.confirm("red", 10)
        assert {truth(session.address(item["id"])) for item in page["items"]} == {"red"}
        refused, ticked = page["items"][0]["id"], [item["id"] for item in page["items"][1:]]
        session.act({"do": "confirm", "label": "red", "images": ticked, "rejected": [refused]})
        assert session.wait_learnt(60)
        left = {item["id"] for item in session.confirm("red", 1000)["items"]}
        assert not left & {refused, *ticked}
        others = session.images("all", 0, 1000)["items"]
        assert next(item for item in others if item["id"] == refused)["suggestion"]["label"] != "red"
        assert session.undo()["changed"] != []
        assert session.wait_learnt(60)
        assert {item["id"] for item in session.confirm("red", 1000)["items"]} >= {refused, *ticked}


def test_a_class_that_was_rejected_for_an_image_is_no_reason_for_a_second_look(folder: Path) -> None:
    with named_session(folder) as session:
        label(session, open_images(session))
        labelled = [item["id"] for item in session.images("class:blue", 0, 99)["items"]]
        wrong = labelled[:3]
        session.act({"do": "label", "images": wrong, "label": "red"})
        assert session.wait_learnt(60)
        assert {item["id"] for item in session.mistakes(20)["items"]} == set(wrong)
        session.act({"do": "reject", "images": wrong[:1], "label": "blue"})
        assert {item["id"] for item in session.mistakes(20)["items"]} == set(wrong[1:])


def test_images_left_out_of_a_named_group_are_rejected_for_the_class_and_come_last(folder: Path) -> None:
    with named_session(folder) as session:
        group = max(session.clusters(), key=lambda one: one["unlabelled"])
        left_out, *named = group["examples"][:9]
        session.act({"do": "label", "images": named, "label": "new", "source": "cluster", "rejected": [left_out]})
        after = next(one for one in session.clusters() if one["id"] == group["id"])
        assert after["unlabelled"] == group["unlabelled"] - len(named)
        assert left_out not in after["examples"][: min(9, after["unlabelled"] - 1)]
        assert session.images("class:new", 0, 99)["total"] == len(named)
        session.undo()  # one step
        assert session.clusters() == [one | {"suggested": None} for one in session.clusters()]
        assert next(one for one in session.clusters() if one["id"] == group["id"])["examples"][0] == left_out


def test_probabilities_of_a_question_are_those_given_the_rejected_classes(folder: Path) -> None:
    with named_session(folder) as session:
        label(session, open_images(session)[::4])
        red = session.confirm("red", 1)["items"][0]["id"]
        session.act({"do": "reject", "images": [red], "label": "red"})
        assert session.wait_learnt(60)
        asked = {item["id"]: item["suggestions"] for item in session.ask(200)["items"]}[red]
        assert {one["label"] for one in asked} == {"blue", "green"}
        assert sum(one["probability"] for one in asked) == pytest.approx(1, abs=1e-3)


def questions_until_found(folder: Path, most: int = 60) -> int:
    """Questions until an image of each class without a name was asked for; the other three are named first."""
    write_names(folder, {"gold": 30, "white": 15})
    with named_session(folder) as session:
        named = [image for image in open_images(session) if truth(session.address(image)) not in HIDDEN]
        label(session, named[::4])
        assert session.learning is not None
        assert session.learning.learnt is not None
        hidden = [image for image in open_images(session) if truth(session.address(image)) in HIDDEN]
        chances = session.learning.learnt.label_probabilities[hidden].max(axis=1)
        assert np.median(chances) > CERTAIN  # the classifier takes them for a class that has a name
        found, count = set(), 0
        while count < most and len(found) < len(HIDDEN):
            asked = [item["id"] for item in session.ask(5)["items"]]
            found |= HIDDEN.keys() & {truth(session.address(image)) for image in asked}
            count += len(asked)
            session.act({"do": "answer", "images": asked, "answer": "skip"})
            assert session.wait_learnt(60)
        return count


def test_classes_without_a_name_are_asked_for_although_the_classifier_is_certain(folder: Path) -> None:
    assert questions_until_found(folder) <= 20


def test_the_check_for_classes_without_a_name_fails_without_the_questions_that_explore(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SessionLearning, "_exploring", lambda *_: {})
    assert questions_until_found(folder) > 30


def test_everything_can_be_labelled_through_clusters_and_queues(folder: Path) -> None:
    with named_session(folder) as session:
        for cluster in session.clusters():
            label(session, cluster["examples"][:2], "cluster")
        while (page := session.confirm(None, 50))["items"]:
            label(session, [item["id"] for item in page["items"]], "confirm")
        label(session, [item["id"] for item in session.blind(1000)["items"]])
        assert session.state()["labelled"] == 120
        assert session.ask(5) == {"label": None, "total": 0, "items": []}
        assert session.knowledge()["words"] == "All images are labelled: train."


def test_a_wrong_label_is_offered_for_a_second_look_once(folder: Path) -> None:
    with named_session(folder) as session:
        images = open_images(session)
        label(session, images)
        wrong = next(image for image in images if truth(session.address(image)) == "red")
        assert session.mistakes(10)["items"] == []
        session.act({"do": "label", "images": [wrong], "label": "blue"})
        assert session.wait_learnt(60)
        found = session.mistakes(10)["items"]
        assert (found[0]["id"], found[0]["suggestion"]["label"]) == (wrong, "red")
        session.act({"do": "label", "images": [wrong], "label": "red", "source": "second look"})
        assert session.wait_learnt(60)
        assert session.mistakes(10)["items"] == []


def test_edits_of_the_table_by_hand_are_taken_in_one_step_of_undo(folder: Path) -> None:
    with named_session(folder) as session:
        label(session, open_images(session)[:4])
        table = session.files.table
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], lines[1].replace(",blue,", ",sky,"), *lines[3:]]) + "\n")
    with named_session(folder) as session:
        found = rows(session)
        assert (len(found), "sky" in found.values()) == (3, True)
        session.undo()
        assert table.read_text().splitlines() == lines


def test_a_table_without_a_journal_is_taken(folder: Path) -> None:
    with named_session(folder) as session:
        label(session, open_images(session)[:6])
        found, journal = rows(session), session.files.journal
    journal.unlink()
    with named_session(folder) as session:
        assert rows(session) == found
        assert session.state()["labelled"] == 6


def test_an_added_image_is_among_the_others_at_once_and_after_a_restart(folder: Path) -> None:
    more = write_names(folder.parent / "more", {"red": 45}) / "red-44.jpg"
    with named_session(folder) as session:
        label(session, open_images(session)[::5])
        before = session.images("all", 0, 1000)["total"]
        added = session.add_file(more, "red")["id"]
        items = session.images("all", 0, 1000)["items"]
        assert (added, len(items)) == (before, before + 1)
        assert (items[added]["name"], items[added]["label"], items[added]["stack"]) == ("red-44.jpg", ["red"], 1)
        assert session.state()["images"] == before + 1
        assert session.find_image(more.read_bytes()) == added
        assert session.add_file(more, "blue")["id"] == added  # no second one
        copy = folder.parent / "copy.jpg"
        copy.write_bytes((folder / "blue-3.jpg").read_bytes())
        assert truth(session.address(session.add_file(copy, "blue")["id"])) == "blue"
        assert session.images("all", 0, 1000)["total"] == before + 1
        assert session.wait_learnt(60)
        assert session.learning is not None
        assert len(session.learning.vectors) == before + 1
        assert session.ask(5)["total"] == len(open_images(session))
        assert session.mistakes(5)["items"] == []
        session.export("coco", folder.parent / "out.json")
        session.undo()  # of the copy's label
        session.undo()
        assert session.images("class:red", 0, 1000)["items"][-1]["id"] == added
        assert rows(session)["more/red-44.jpg"] == "red"
    with named_session(folder) as session:
        item = session.images("all", 0, 1000)["items"][added]
        assert (item["name"], item["label"]) == ("red-44.jpg", ["red"])
        assert session.learning is not None
        assert len(session.learning.vectors) == before + 1


def test_labels_that_cannot_be_locked_are_not_called_those_of_another_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(lock: FileLock) -> None:
        raise Timeout(lock.lock_file)

    monkeypatch.setattr(FileLock, "acquire", refused)  # filelock says so in a folder that cannot be written
    with pytest.raises(OutputError, match=r"photos-labels\.csv: cannot be written\. Choose another file with --labels"):
        LabellingSession.open(folder)


@pytest.mark.parametrize("labels", [None, "own.csv"])
def test_a_source_that_does_not_exist_is_refused_and_leaves_no_file(tmp_path: Path, labels: str | None) -> None:
    table = None if labels is None else tmp_path / labels
    for source in (tmp_path / "photographs", [tmp_path / "photographs"], str(tmp_path / "a.zip")):
        with pytest.raises(DataError, match="no such file or folder"):
            LabellingSession.open(source, labels=table)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_a_failure_and_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    session = LabellingSession.open(tmp_path / "photographs")
    session.start()
    assert not session.wait_ready(60)
    assert "no images in this folder" in (session.failure or "")
    session.close()
    assert [file.name for file in tmp_path.iterdir()] == ["photographs"]


def test_labels_of_a_folder_that_has_lost_its_images_are_kept(folder: Path) -> None:
    with named_session(folder) as session:
        label(session, open_images(session)[:3])
        table = session.files.table.read_text()
    for file in folder.iterdir():
        file.unlink()
    session = LabellingSession.open(folder)
    session.start()
    assert not session.wait_ready(60)
    session.close()
    assert session.files.table.read_text() == table


def test_an_image_is_not_added_before_those_of_the_source_are_known(folder: Path) -> None:
    more = write_names(folder.parent / "more", {"red": 45}) / "red-44.jpg"
    session = LabellingSession.open(folder)
    with pytest.raises(OptionError, match="once all images of the source are read"):
        session.add_file(more, "red")
    session.close()


def test_several_labels_to_an_image(folder: Path) -> None:
    with named_session(folder, multi_label=True) as session:
        images = open_images(session)
        for name in ("blue", "green", "red"):
            chosen = [image for image in images if truth(session.address(image)) == name][:8]
            session.act({"do": "label", "images": chosen, "label": name})
        both = images[0]
        session.act({"do": "toggle", "images": [both], "label": "dark"})
        session.act({"do": "answer", "images": [images[-1]], "answer": "none"})
        assert session.wait_learnt(60)
        assert next(iter(session.images("class:dark", 0, 9)["items"]))["label"] == ["blue", "dark"]
        dataset = hs.open_data(session.files.table)
        assert dataset.multi_label
        assert dataset.labels.sum(axis=1).tolist().count(0) == 1
        assert dataset.labels.sum(axis=1).max() == 2
        page = session.confirm("red", 5)
        assert {truth(session.address(item["id"])) for item in page["items"]} == {"red"}
        session.act({"do": "toggle", "images": [both], "label": "dark"})
        assert session.images("class:dark", 0, 9)["total"] == 0


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ({"do": "fly"}, "unknown action"),
        ({"do": "label", "images": [999], "label": "a"}, "999 is not the number of an image"),
        ({"do": "label", "images": [True], "label": "a"}, "list of integers"),
        ({"do": "label", "images": [1], "label": "  "}, "name of the class is empty"),
        ({"do": "label", "images": [1], "label": "a\x00b"}, "cannot be seen"),
        ({"do": "add class", "name": "rose\u200d"}, "at its end"),
        ({"do": "label", "images": [1], "label": "a", "source": "x"}, "source 'x'"),
        ({"do": "answer", "images": [1], "answer": "maybe"}, "answer 'maybe'"),
        ({"do": "toggle", "images": [1], "label": "a"}, "several labels"),
        ({"do": "more blind", "count": 0}, "count"),
    ],
)
def test_an_invalid_action_changes_nothing(folder: Path, action: dict[str, object], message: str) -> None:
    with named_session(folder) as session:
        before = session.files.journal.read_bytes()
        with pytest.raises(OptionError, match=message):
            session.act(action)
        assert session.files.journal.read_bytes() == before


def test_the_first_images_are_served_while_the_pass_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()

    def slow(_self: object) -> object:
        may_end.wait(60)
        raise hs.HeadstartError("no network here")

    monkeypatch.setattr("headstart.labelling.frozen_pass.FrozenPass._computed", slow)
    session = LabellingSession.open(folder)
    session.start()
    seen = -1
    while session.state()["images"] < 120:
        seen = session.wait_change(seen, 5)
    session.act({"do": "label", "images": [7], "label": "rose"})
    assert session.images("labelled", 0, 9)["items"][0]["id"] == 7
    assert session.ask(5)["items"] == session.confirm(None, 5)["items"] == session.clusters() == []
    may_end.set()
    assert not session.wait_ready(60)
    assert session.state()["work"] | {"seconds_left": None} == {
        "stage": "failed",
        "done": 0,
        "total": 0,
        "seconds_left": None,
        "message": "no network here",
        "failures": [],
    }
    session.close()


def test_numbers_are_in_natural_order(folder: Path) -> None:
    with named_session(folder) as session:
        names = [item["name"] for item in session.images("all", 0, 12)["items"]]
        assert names == [f"blue-{number}.jpg" for number in range(12)]
        assert np.isfinite(session.learning.vectors).all()  # type: ignore[union-attr]


def test_names_of_folders_are_offered_while_nothing_is_labelled() -> None:
    addresses = ["/d/readme.png", "/d/rose/1.png", "/d/rose/2.png", "/d/tulip/1.png"]
    assert folders_of(addresses, LabelState()) == ["rose", "tulip"]
    assert folders_of(["s3://d/a/1.png", "s3://d/b/1.png"], LabelState()) == ["a", "b"]
    assert folders_of(addresses[:3], LabelState()) == []
    assert folders_of([f"/d/{i}/1.png" for i in range(101)], LabelState()) == []
    begun = LabelState()
    begun.apply(LabelChange("label", answers={"x": (None, Answer("label", ("rose",), "grid", "now"))}))
    assert folders_of(addresses, begun) == []
