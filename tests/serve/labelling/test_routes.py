"""Routes of the labelling page."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from labelling import colour_of, opened_session, wait_for, write_unlabelled
from PIL import Image
from random_images import COLOURS, random_image

from headstart.serve.labelling.backend import LabellingBackend
from headstart.serve.labelling.events import state_events
from headstart.serve.labelling.process import labelling_app
from headstart.serve.middleware import ServerState

pytestmark = pytest.mark.usefixtures("small_networks")

Answer = dict[str, Any]


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, small_networks: None
) -> Iterator[tuple[TestClient, LabellingBackend]]:
    folder = write_unlabelled(tmp_path_factory.mktemp("routes") / "images", 45)
    with (
        opened_session(folder) as backend,
        TestClient(labelling_app(backend, ServerState()), base_url="http://localhost") as client,
    ):
        wait_for(lambda: backend.session.state()["work"]["stage"] in ("ready", "failed"))
        yield client, backend


@pytest.fixture
def client(served: tuple[TestClient, LabellingBackend]) -> TestClient:
    return served[0]


def state(client: TestClient) -> Answer:
    return dict(client.get("/v1/label/state").json())


def act(client: TestClient, **action: object) -> Answer:
    reply = client.post("/v1/label/actions", json={"session": state(client)["session"], "action": action})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def items(client: TestClient, view: str = "all", count: int = 100) -> list[Answer]:
    return list(client.get("/v1/label/images", params={"view": view, "count": count}).json()["items"])


def test_the_page_and_its_modules_are_served_under_a_policy_without_exceptions(client: TestClient) -> None:
    page = client.get("/").text
    scripts = re.findall(r"page/(label[\w-]*\.(?:js|css))", page)
    assert scripts == ["label.css", "label.js"]
    for name in [*scripts, *re.findall(r'from "\./([\w-]+\.js)"', client.get("/page/label.js").text)]:
        answer = client.get(f"/page/{name}")
        assert answer.status_code == 200, name
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", ""), name
    assert "Nothing leaves this machine" in page
    assert not re.search(r"\son\w+=|style=|<script(?![^>]*src=)|<style", page)


def test_other_hosts_and_other_origins_are_refused(client: TestClient) -> None:
    assert client.get("/v1/label/state", headers={"Host": "example.org"}).status_code == 403
    body = {"session": state(client)["session"], "action": {"do": "add class", "name": "x"}}
    reply = client.post("/v1/label/actions", json=body, headers={"Origin": "http://example.org"})
    assert reply.status_code == 403
    assert "x" not in [one["name"] for one in state(client)["classes"]]


def test_an_action_labels_images_and_undo_and_redo_name_it(client: TestClient) -> None:
    first = items(client)[0]
    reply = act(client, do="label", images=[first["id"]], label="first", source="grid")
    assert first["id"] in reply["changed"]
    assert items(client)[0]["label"] == ["first"]
    assert "first" in state(client)["undo"]
    token = {"session": state(client)["session"]}
    assert client.post("/v1/label/undo", json=token).status_code == 200
    assert items(client)[0]["label"] is None
    assert "first" in state(client)["redo"]
    assert client.post("/v1/label/redo", json=token).status_code == 200
    assert items(client)[0]["label"] == ["first"]
    act(client, do="delete class", name="first")
    assert items(client)[0]["label"] is None


def test_a_page_of_an_earlier_process_changes_nothing(client: TestClient) -> None:
    action = {"do": "add class", "name": "late"}
    for path, body in [("actions", {"action": action}), ("undo", {}), ("redo", {}), ("train", {}), ("export", {})]:
        reply = client.post(f"/v1/label/{path}", json={"session": "another", **body})
        assert reply.status_code == 409, path
        assert "Reload" in reply.json()["error"]["reason"]
    assert "late" not in [one["name"] for one in state(client)["classes"]]


def test_an_action_on_a_class_that_was_renamed_is_a_conflict(client: TestClient) -> None:
    act(client, do="add class", name="before")
    act(client, do="rename class", name="before", to="after")
    body = {"session": state(client)["session"], "action": {"do": "delete class", "name": "before"}}
    assert client.post("/v1/label/actions", json=body).status_code == 409
    assert "after" in [one["name"] for one in state(client)["classes"]]
    act(client, do="delete class", name="after")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"text", b'{"session": 1}', b'{"action": {"do": "label"}}', b"\xff", b"9" * 5000]
)
def test_a_damaged_action_is_an_error_of_the_client(client: TestClient, content: bytes) -> None:
    for path in ("actions", "undo", "train", "export", "import"):
        reply = client.post(f"/v1/label/{path}", content=content, headers={"Content-Type": "application/json"})
        assert reply.status_code in (409, 422), path
        assert reply.json()["error"]["reason"]


def test_an_unknown_action_or_view_is_refused_with_a_reason(client: TestClient) -> None:
    token = state(client)["session"]
    for action in [None, 3, {}, {"do": "explode"}, {"do": "label", "images": [10**9], "label": "x"}]:
        reply = client.post("/v1/label/actions", json={"session": token, "action": action})
        assert reply.status_code == 422, action
    for path in [
        "images?count=0",
        "images?start=-1",
        "images?count=100000",
        "images?view=nothing",
        "queue/ask?count=x",
    ]:
        reply = client.get(f"/v1/label/{path}")
        assert (reply.status_code, list(reply.json())) == (422, ["error"]), path


def test_thumbnails_are_jpeg_files_of_few_sizes(client: TestClient) -> None:
    token = state(client)["session"]
    reply = client.get(f"/v1/label/images/0?size=33&session={token}")
    assert reply.headers["content-type"] == "image/jpeg"
    assert "immutable" in reply.headers["cache-control"]
    assert max(Image.open(io.BytesIO(reply.content)).size) <= 96
    assert client.get("/v1/label/images/0?size=96&session=another").status_code == 409
    assert client.get(f"/v1/label/images/999999?size=96&session={token}").status_code == 422


def test_a_second_look_keeps_a_label_and_is_undone(client: TestClient) -> None:
    item = items(client)[7]
    act(client, do="label", images=[item["id"]], label=colour_of(item), source="ask")
    before = items(client)[7]["source"]
    act(client, do="keep", images=[item["id"]])
    assert items(client)[7]["source"] == ("blind" if before == "blind" else "second look")
    assert items(client)[7]["label"] == [colour_of(item)]


def test_all_numbers_of_a_view_are_those_of_its_items(client: TestClient) -> None:
    assert client.get("/v1/label/ids?view=all").json()["ids"] == [item["id"] for item in items(client)]


def test_each_queue_and_the_knowledge_answer(client: TestClient) -> None:
    for queue in ("confirm", "ask", "blind", "mistakes"):
        assert {"items", "total"} <= client.get(f"/v1/label/queue/{queue}?count=3").json().keys()
    assert "clusters" in client.get("/v1/label/clusters").json()
    assert {"accuracy", "curve", "forecast", "words"} <= client.get("/v1/label/knowledge").json().keys()


def test_training_and_trial_say_what_is_missing(client: TestClient) -> None:
    assert state(client)["training"]["state"] == "none"
    for path in ("watch/events", "watch/summary", "watch/report", "watch/images/x"):
        assert client.get(f"/{path}").status_code == 404
    data = io.BytesIO()
    random_image(1).save(data, "PNG")
    reply = client.post("/v1/label/try", files={"file": ("a.png", data.getvalue(), "image/png")})
    assert reply.status_code == 422
    assert "Train one first" in reply.json()["error"]["reason"]


def test_labels_are_downloaded_and_loaded_again(
    client: TestClient, served: tuple[TestClient, LabellingBackend]
) -> None:
    shown = items(client)[:6]
    for item in shown:
        act(client, do="label", images=[item["id"]], label=colour_of(item), source="grid")
    table = client.get("/v1/label/export?kind=csv")
    assert table.headers["content-disposition"].startswith('attachment; filename="images-csv.csv"')
    assert "blue" in table.text
    assert client.get("/v1/label/export?kind=coco").json()["categories"]
    assert json.loads(client.get("/v1/label/export?kind=label-studio").text)
    assert client.get("/v1/label/export?kind=nothing").status_code == 422
    act(client, do="clear", images=[item["id"] for item in shown])
    form = {"kind": "csv", "session": state(client)["session"]}
    reply = client.post("/v1/label/import", data=form, files={"file": ("a.csv", table.content, "text/csv")})
    assert reply.status_code == 200, reply.text
    assert [item["label"] for item in items(client)[:6]] == [[colour_of(item)] for item in shown]


def test_folders_are_written_below_the_folder_of_the_labels(
    client: TestClient, served: tuple[TestClient, LabellingBackend]
) -> None:
    token = state(client)["session"]
    item = items(client)[0]
    act(client, do="label", images=[item["id"]], label="blue", source="grid")
    for out in ("", " ", "a\0b"):
        assert client.post("/v1/label/export", json={"session": token, "out": out, "how": "copy"}).status_code == 422
    reply = client.post("/v1/label/export", json={"session": token, "out": "classes", "how": "copy"})
    assert reply.status_code == 200, reply.text
    assert list((served[1].labels_file.parent / "classes").rglob("blue/*.png"))


def test_a_wrong_answer_of_the_trained_model_joins_the_labels(
    client: TestClient, served: tuple[TestClient, LabellingBackend]
) -> None:
    data = io.BytesIO()
    random_image(12345, COLOURS["red"]).save(data, "PNG")
    form = {"label": "red", "session": state(client)["session"]}
    reply = client.post("/v1/label/correct", data=form, files={"file": ("a.png", data.getvalue(), "image/png")})
    assert reply.status_code == 200, reply.text
    added = reply.json()["id"]
    assert (items(client)[-1]["id"], items(client)[-1]["label"]) == (added, ["red"])
    token = state(client)["session"]
    assert client.get(f"/v1/label/images/{added}?size=96&session={token}").status_code == 200
    table = served[1].labels_file.read_text()
    assert re.search(r"^images-corrections/red/\w+\.png,red,train,second look,", table, re.MULTILINE)
    form["label"] = "blue"  # on second thoughts: the same image, not a second one
    reply = client.post("/v1/label/correct", data=form, files={"file": ("a.png", data.getvalue(), "image/png")})
    assert (reply.json()["id"], items(client)[-1]["label"]) == (added, ["blue"])
    table = served[1].labels_file.read_text()
    assert re.findall(r"^images-corrections/.*", table, re.MULTILINE)[0].split(",")[1] == "blue"
    assert len(list(served[1].labels_file.parent.glob("images-corrections/*/*.png"))) == 1
    own = items(client)[4]
    form["label"] = colour_of(own)
    content = (served[1].labels_file.parent / "images" / own["name"]).read_bytes()
    reply = client.post("/v1/label/correct", data=form, files={"file": ("b.png", content, "image/png")})
    assert reply.json()["id"] == own["id"]
    assert items(client)[4]["label"] == [colour_of(own)]
    refused = client.post("/v1/label/correct", data=form, files={"file": ("a.png", b"text", "image/png")})
    assert refused.status_code == 422


def test_the_stream_sends_the_state_only_when_it_changes() -> None:
    import asyncio

    documents = [{"revision": 1}, {"revision": 1}, {"revision": 2}]
    stopping = iter([False, False, False, True])

    async def collect() -> list[bytes]:
        stream = state_events(lambda: documents.pop(0), lambda seen, _seconds: seen + 1, lambda: next(stopping))
        return [event async for event in stream]

    sent = asyncio.run(collect())
    assert sent == [b'event: state\ndata: {"revision": %d}\n\n' % number for number in (1, 2)]


def test_the_names_of_a_session_follow_its_table() -> None:
    from headstart.serve.labelling.training_process import session_name

    assert [session_name(Path(name)) for name in ("a-labels.csv", "b.csv", "-labels.csv")] == ["a", "b", "-labels"]


def test_hostile_values_are_errors_of_the_client(client: TestClient) -> None:
    token = state(client)["session"]

    def posted(path: str, body: object) -> tuple[int, str]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        reply = client.post(f"/v1/label/{path}", content=content, headers={"Content-Type": "application/json"})
        return reply.status_code, reply.json()["error"]["reason"]

    assert posted("actions", b"[" * 100_000) == (422, "Expected a JSON object.")
    for do in ([], {}, None, 3, ["label"]):
        status, reason = posted("actions", {"session": token, "action": {"do": do}})
        assert (status, reason.split(".")[0]) == (422, "unknown action")
    for place in ("~nosuchuser/x", "a\0b", "\ud800"):
        assert posted("export", {"session": token, "out": place, "how": "copy"})[0] == 422, place
        assert posted("import", {"session": token, "folder": place})[0] == 422, place
    assert posted("export", {"session": token, "out": "x", "how": []})[0] == 422
    for value in (5, ["x"], None):
        assert posted("export", {"session": token, "out": value}) == (422, "out: expected text.")
        assert posted("import", {"session": token, "folder": value}) == (422, "folder: expected text.")
    assert posted("import", {"session": token, "folder": "x" * 5000})[0] == 422


@pytest.mark.parametrize("name", ["a\0b.csv", "..", "/", "\ud800.csv", "x" * 300 + ".csv", "ä" * 300 + ".csv", " . "])
def test_an_upload_may_have_any_name(
    client: TestClient, served: tuple[TestClient, LabellingBackend], name: str
) -> None:
    found = served[1].import_file(b"path,label\nunheard-of.png,x\n", name, "csv")
    assert found["num_unknown"] == 1


@pytest.mark.parametrize("kind", ["csv", "coco", "label-studio"])
def test_an_upload_that_cannot_be_read_is_an_error_of_the_client(client: TestClient, kind: str) -> None:
    form = {"kind": kind, "session": state(client)["session"]}
    for content in (b"[" * 100_000, b"path,label\n" + b"x" * 200_000 + b",a\n", b"\xff\xfe\xff", b"\0\0"):
        reply = client.post("/v1/label/import", data=form, files={"file": ("a", content, "text/csv")})
        assert reply.status_code == 422, content[:20]
        assert reply.json()["error"]["reason"].startswith("a: ")  # not the path of a temporary copy
