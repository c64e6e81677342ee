from __future__ import annotations

import asyncio
import json
import re
import socket
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from damaged import Damaged, ask
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from served import CLASSES, LENGTH, Served, form, jpeg, served, tiny_model, until

import headstart.serve.batching as services
from headstart.serve.access import AccessPolicy
from headstart.serve.app import ERROR_DESCRIPTIONS, build_app
from headstart.serve.batching import InferenceService
from headstart.serve.limits import ServerLimits
from headstart.trust.calibration import Calibration
from headstart.trust.ood import OodDetector

LIMITS = ServerLimits(max_body_bytes=200_000, max_images=10, max_pixels=1_000_000, body_timeout=1.0)
HOSTILE = [
    "../../etc/passwd",
    "a\r\nSet-Cookie: x=1",
    "\x1b[31mred",
    "\u202egpj.exe",
    "<script>.jpg",
    "日本語 é.jpg",
    "x" * 900,
]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(tiny_model(), limits=LIMITS) as own:
        yield own


def bomb(width: int, height: int) -> bytes:
    """A small PNG file with a large size in its header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    pixels = zlib.compress(bytes(1_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def is_problem(reply: httpx.Response, status: int) -> bool:
    """Checks the format of an error response."""
    document = reply.json()
    own = document["error"]
    return (
        reply.status_code == own["status"] == status
        and set(document) == {"error"}
        and set(own) == {"status", "code", "reason"}
        and bool(re.fullmatch(r"[a-z_]+", own["code"]))
        and bool(own["reason"])
    )


def figures(server: Served) -> dict[str, float]:
    text = server.client.get("/metrics").text
    return {
        own.name + "".join(f",{v}" for v in own.labels.values()): own.value
        for family in text_string_to_metric_families(text)
        for own in family.samples
    }


def raw(server: Served, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as plug:
        plug.sendall(data)
        got = b""
        while piece := plug.recv(65536):
            got += piece
    return got


def test_the_server_returns_the_predictions_of_predict(server: Served) -> None:
    data = [jpeg(i) for i in range(3)]
    reply = server.predict(*((f"{i}.jpg", own) for i, own in enumerate(data)))
    assert reply.status_code == 200
    assert reply.json()["version"] == server.service.model.version
    for said, expected in zip(reply.json()["predictions"], server.service.model.predict(data), strict=True):
        assert (said["label"], said["answer"], said["error"]) == (expected.label, expected.answer, None)
        chances = {own["label"]: own["probability"] for own in said["probabilities"]}
        assert chances == pytest.approx(dict(expected.top), abs=1e-6)
        assert [own["label"] for own in said["probabilities"]] == [label for label, _ in expected.top]
        assert (said["none_of_these"], said["unsure"], said["outlier"], said["labels"]) == (False, False, None, None)


def test_an_unreadable_image_does_not_affect_the_other_nine(server: Served) -> None:
    sent = [(f"{i}.jpg", jpeg(i)) for i in range(10)]
    sent[3] = ("bad.jpg", jpeg(3)[:300])
    said = server.predict(*sent).json()["predictions"]
    assert [own["name"] for own in said] == [name for name, _ in sent]
    assert "truncated" in said[3].pop("error")
    assert (said[3]["label"], said[3]["probability"], said[3]["answer"], said[3]["probabilities"]) == (None,) * 3 + (
        [],
    )
    assert all(own["label"] in CLASSES and own["error"] is None for i, own in enumerate(said) if i != 3)
    assert server.last["images"] == 10
    assert server.last["unreadable"] == 1


def test_an_image_with_too_many_pixels_is_refused_by_its_header(server: Served) -> None:
    sent = ("a.png", bomb(1_001, 1_000)), ("b.png", bomb(60_000, 60_000)), ("good.jpg", jpeg())
    said = server.predict(*sent).json()["predictions"]
    assert said[0]["error"] == "too large: 1,001 x 1,000 pixels; the limit is 1 million"
    assert said[1]["error"].startswith("too large")
    assert said[2]["error"] is None


def test_top_limits_the_number_of_classes(server: Served) -> None:
    for top, listed in ((1, 1), (2, 2), (99, 3)):
        (said,) = server.predict(("a.jpg", jpeg()), params={"top": top}).json()["predictions"]
        assert len(said["probabilities"]) == listed
    assert is_problem(server.predict(("a.jpg", jpeg()), params={"top": 0}), 422)


def test_outliers_and_multi_label_predictions_are_returned() -> None:
    unlike = OodDetector(np.full((60, LENGTH), -1, np.float16), np.linspace(0, 0.1, 60, dtype=np.float32))
    model = tiny_model(ood_detector=unlike, thresholds=[0.0, 0.0, 1.0])
    with served(model) as server:
        (said,) = server.predict(("a.jpg", jpeg())).json()["predictions"]
        about = server.client.get("/v1/model").json()
    (expected,) = model.predict([jpeg()])
    assert (said["answer"], said["none_of_these"]) == ("none of these", True)
    assert said["outlier"] == pytest.approx(60 / 61)
    assert [own["label"] for own in said["labels"]] == [label for label, _ in expected.labels or ()]
    assert len(said["labels"]) == 2
    assert (about["multi_label"], about["thresholds"], about["detects_out_of_distribution"]) == (
        True,
        [0.0, 0.0, 1.0],
        True,
    )


def test_low_probabilities_are_answered_with_unsure() -> None:
    with served(tiny_model(calibration=Calibration(2.0, 100, 0.95, 1.0, 0.1, 0.95))) as server:
        (said,) = server.predict(("a.jpg", jpeg())).json()["predictions"]
        assert (said["unsure"], said["answer"]) == (True, "unsure: ask a person")
        assert "Calibrated on 100 validation images" in server.client.get("/v1/model").json()["calibration"]


def test_the_model_route_returns_metadata(server: Served) -> None:
    about = server.client.get("/v1/model").json()
    assert about["classes"] == list(CLASSES)
    assert about["preprocessing"]["height"] == 64
    assert about["fit"].startswith("Images are resized to cover")
    assert re.fullmatch("[0-9a-f]{64}", about["version"])
    assert about["engine"].startswith("torch")


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_file_name_is_returned_only_as_data(server: Served, name: str) -> None:
    reply = server.predict((name, jpeg()))
    assert reply.status_code == 200
    assert "set-cookie" not in reply.headers
    assert len(reply.json()["predictions"][0]["name"]) <= 255
    assert name[:20] not in json.dumps(server.last)
    assert not [byte for byte in reply.content if byte < 32 or byte == 127]


def test_invalid_charsets_and_headers_are_no_server_error(server: Served) -> None:
    for charset in ("idna", "utf-7", "unicode_escape", "undefined", "hex", "punycode", "utf-16", "\xff"):
        line = b'--b\r\nContent-Disposition: form-data; name="files"; filename="\\ud800\xff+2AA-"\r\n\r\nx\r\n--b--\r\n'
        kind = f"multipart/form-data; boundary=b; charset={charset}".encode("latin-1")
        reply = server.client.post("/v1/predict", content=line, headers={b"Content-Type": kind})
        assert reply.status_code in (200, 400, 422), charset


def test_a_body_over_the_limit_is_refused_while_it_is_sent(server: Served) -> None:
    assert is_problem(server.predict(("a.jpg", bytes(300_000))), 413)
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 100_000_000:
            sent += 50_000
            yield bytes(50_000)

    try:
        reply = server.client.post("/v1/predict", content=endless())
    except httpx.HTTPError:
        pass
    else:
        assert is_problem(reply, 413)
    assert sent < 20_000_000
    assert server.service.state.buffered_bytes == 0
    assert server.last["status"] == 413


def test_too_many_images_in_a_request_are_refused(server: Served) -> None:
    assert is_problem(server.predict(*((f"{i}.jpg", b"x") for i in range(11))), 413)


@pytest.mark.slow
def test_a_missing_body_times_out(server: Served) -> None:
    got = raw(server, b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n--b")
    assert got.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in got.lower()


def test_the_total_size_of_all_bodies_is_limited() -> None:
    with served(tiny_model(), limits=replace(LIMITS, max_buffered_bytes=50_000)) as server:
        reply = server.predict(("a.jpg", bytes(60_000)))
        assert is_problem(reply, 503)
        assert reply.headers["retry-after"] == "1"
        assert server.predict(("a.jpg", jpeg())).status_code == 200


def test_every_error_response_has_the_same_format(server: Served) -> None:
    client = server.client
    assert is_problem(client.get("/nothing"), 404)
    assert is_problem(client.get("/v1/predict"), 405)
    assert is_problem(client.post("/v1/predict"), 422)
    assert is_problem(client.post("/v1/predict", json={"files": 3}), 422)
    assert is_problem(client.post("/v1/predict", data={"files": "text"}), 422)
    broken = {"Content-Type": "multipart/form-data"}
    assert is_problem(client.post("/v1/predict", content=b"x", headers=broken), 400)
    assert client.head("/nothing").content == b""


def test_with_a_key_only_health_checks_need_none() -> None:
    with served(tiny_model(), key="s3cret!", limits=LIMITS) as server:
        client = server.client
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic s3cret!"},
            {b"Authorization": b"Bearer \xff"},
        ):
            for path in ("/v1/model", "/metrics", "/openapi.json", "/nothing"):
                reply = client.get(path, headers=headers)  # type: ignore[arg-type]
                assert is_problem(reply, 401), (path, headers)
                assert reply.headers["www-authenticate"] == "Bearer"
        assert is_problem(server.predict(("a.jpg", bytes(300_000))), 401)
        assert client.get("/healthz").json() == {"alive": True}
        assert client.get("/readyz").json() == {"ready": True}
        assert server.predict(("a.jpg", jpeg()), headers={"Authorization": "Bearer s3cret!"}).status_code == 200
        assert client.get("/openapi.json", headers={"Authorization": "bearer s3cret!"}).json()["components"][
            "securitySchemes"
        ]
        assert "s3cret" not in json.dumps(server.log)
        assert (
            client.get("/v1/model", headers={"Host": "example.com", "Authorization": "Bearer s3cret!"}).status_code
            == 200
        )


def test_pages_of_other_sites_are_not_served(server: Served) -> None:
    assert is_problem(server.predict(("a.jpg", jpeg()), headers={"Origin": "http://evil.example"}), 403)
    assert is_problem(server.client.get("/v1/model", headers={"Host": "evil.example"}), 403)
    assert server.predict(("a.jpg", jpeg()), headers={"Origin": server.url}).status_code == 200
    with served(tiny_model(), local=False) as open_to_all:
        assert open_to_all.client.get("/healthz", headers={"Host": "box.example"}).status_code == 200


def test_metrics_count_what_was_answered(server: Served) -> None:
    before = figures(server)
    server.predict(("a.jpg", jpeg()), ("b.jpg", b"bad"))
    server.client.get("/nothing/at/all")
    after = figures(server)
    gained = {name: after[name] - before.get(name, 0) for name in after}
    assert gained["headstart_requests_total,POST,/v1/predict,200"] == 1
    assert gained["headstart_requests_total,GET,other,404"] == 1
    assert gained["headstart_images_total"] == 2
    assert gained["headstart_unreadable_images_total"] == 1
    assert gained["headstart_batch_images_count"] == 1
    assert gained["headstart_decode_seconds_count"] == 2
    assert gained["headstart_request_seconds_count,/v1/predict"] == 1
    assert after["headstart_queue"] == 0


def test_a_request_is_one_line_of_json_without_image_or_query(capfd: pytest.CaptureFixture[str]) -> None:
    from headstart.serve.request_log import write_json_line

    with served(tiny_model()) as server:
        server.predict(("secret name.jpg", jpeg()), params={"top": 2})
        server.client.get("/a%0d%0aX: 1%1b[31m/" + "y" * 500)
        entry, odd = server.log[0], server.last
    assert set(entry) == {"time", "method", "path", "status", "ms", "images", "unreadable"}
    page = Path(__file__).parents[2] / "docs" / "how-to" / "serve.md"
    (shown,) = [line for line in page.read_text().splitlines() if line.strip().startswith('{"time":')]
    assert list(json.loads(shown)) == list(entry)
    assert (entry["method"], entry["path"], entry["status"]) == ("POST", "/v1/predict", 200)
    write_json_line(odd)
    line = capfd.readouterr().err
    assert (line.count("\n"), line.isascii(), line.isprintable() or line[:-1].isprintable()) == (1, True, True)
    assert len(odd["path"]) <= 200


def test_an_internal_error_is_logged_and_not_shown_to_the_client(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: InferenceService, images: Any) -> Any:
        raise RuntimeError("inner workings")

    monkeypatch.setattr(InferenceService, "predict", fail)
    reply = server.predict(("a.jpg", jpeg()))
    assert is_problem(reply, 500)
    assert "inner" not in reply.text
    assert server.last["status"] == 500
    assert "inner workings" in server.log[-2]["error"]


@pytest.mark.slow
def test_a_disconnected_client_cancels_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    given_up: list[bool] = []

    async def wait(self: InferenceService, images: Any) -> Any:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            given_up.append(True)
            raise

    with served(model) as server:
        monkeypatch.setattr(InferenceService, "predict", wait)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/predict", files=form(("a.jpg", jpeg())), timeout=0.5, trust_env=False)
        until(lambda: given_up)
        assert server.last["status"] == 499


def test_a_stopping_server_is_not_ready_and_refuses_requests() -> None:
    with served(tiny_model()) as server:
        server.service.state.draining = True
        assert is_problem(server.client.get("/readyz"), 503)
        assert server.client.get("/healthz").status_code == 200
        reply = server.predict(("a.jpg", jpeg()))
        assert is_problem(reply, 503)
        assert reply.headers["retry-after"] == "5"


def test_the_openapi_description_lists_every_error_response(server: Served) -> None:
    document = server.client.get("/openapi.json").json()
    posted = document["paths"]["/v1/predict"]["post"]
    assert set(posted["responses"]) == {"200", *map(str, ERROR_DESCRIPTIONS)}
    for path in document["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                if status != "200":
                    assert response["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorResponse")
    assert "multipart/form-data" in posted["requestBody"]["content"]
    assert "HTTPValidationError" not in json.dumps(document)


def conform(server: Served, examples: int) -> None:
    """Responses to valid and invalid requests are documented in the OpenAPI description."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.specs.openapi.checks import negative_data_rejection

    schema = schemathesis.openapi.from_dict(server.client.get("/openapi.json").json())
    cases = [result.ok() for result in schema.get_all_operations()]
    assert len(cases) == 5
    for operation in cases:
        modes = schemathesis.GenerationMode if operation.method == "post" else [schemathesis.GenerationMode.POSITIVE]
        for mode in modes:

            @settings(
                max_examples=examples,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                bytes_are_bytes = [negative_data_rejection] if case.method == "POST" else []  # "null" may be a file
                case.call_and_validate(base_url=server.url, excluded_checks=bytes_are_bytes)

            check()


def test_head_answers_like_get_and_without_a_body(server: Served) -> None:
    for path in ("/", "/v1/model", "/v1/page", "/v1/corrections", "/metrics", "/healthz", "/readyz", "/page/page.css"):
        whole, head = server.client.get(path), server.client.head(path)
        assert (head.status_code, head.content) == (200, b""), path
        assert head.headers["content-type"] == whole.headers["content-type"]
        if path != "/metrics":
            assert head.headers["content-length"] == str(len(whole.content)), path
    assert server.client.head("/v1/predict").status_code == 405
    assert server.last["method"] == "HEAD"


def test_refused_predictions_are_counted_under_their_path() -> None:
    with served(tiny_model(), key="k", limits=LIMITS) as server:
        headers = {"Authorization": "Bearer k"}
        server.predict(("a.jpg", jpeg()))
        server.predict(("a.jpg", bytes(300_000)), headers=headers)
        server.predict(("a.jpg", jpeg()), headers=headers | {"Origin": "http://evil.example"})
        server.client.get("/v1/corrections/0123", headers=headers)
        server.client.get("/v1/corrections/4567")
        server.service.state.draining = True
        server.predict(("a.jpg", jpeg()), headers=headers)
        server.service.state.draining = False
        server.client.headers.update(headers)
        counted = figures(server)
    for status in (401, 413, 403, 503):
        assert counted[f"headstart_requests_total,POST,/v1/predict,{status}"] == 1
    assert counted["headstart_requests_total,GET,/v1/corrections/{key},404"] == 1
    assert counted["headstart_requests_total,GET,/v1/corrections/{key},401"] == 1
    assert not any("0123" in name for name in counted)


def test_a_wrong_field_name_is_answered_with_the_right_one(server: Served) -> None:
    reply = server.client.post("/v1/predict", files=[("file", ("a.jpg", jpeg()))])
    assert is_problem(reply, 422)
    assert "no field 'files'; found: 'file'" in reply.json()["error"]["reason"]
    assert "-F files=@image.jpg" in reply.json()["error"]["reason"]


def test_forms_of_various_clients_are_parsed(server: Served) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="files"'
    sent = [head + b"; filename*=UTF-8''%e2%82%ac.jpg", head + b'; filename="a \\"b\\".jpg"', head]
    sent = [own + b"\r\n\r\n" + jpeg(i) + b"\r\n" for i, own in enumerate(sent)]
    body = b"A preamble.\r\n" + b"".join(sent) + b"--b--\r\nAn epilogue."
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    reply = server.client.post("/v1/predict", content=body, headers=kind)
    assert reply.status_code == 200
    assert [own["name"] for own in reply.json()["predictions"]] == ["\u20ac.jpg", 'a "b".jpg', ""]
    assert [own["error"] for own in reply.json()["predictions"]] == [None] * 3


def test_a_server_that_stops_closes_connections_with_its_answers() -> None:
    with served(tiny_model()) as server:
        assert "connection" not in server.client.get("/healthz").headers
        server.service.state.draining = True
        assert server.client.get("/healthz").headers["connection"] == "close"


def test_mounted_in_another_application_it_starts_with_its_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mounted application has no lifespan."""
    monkeypatch.setattr(services, "EXPECTED_IMAGES", 1)
    service = InferenceService(tiny_model())
    parent = FastAPI()
    parent.mount("/flowers", build_app(service, admission=AccessPolicy("k", True), log=None))
    kind, key = b"multipart/form-data; boundary=b", (b"authorization", b"Bearer k")
    body = b'--b\r\nContent-Disposition: form-data; name="files"\r\n\r\n' + jpeg() + b"\r\n--b--\r\n"

    def said(method: str, path: str, *headers: tuple[bytes, bytes], body: bytes = b"") -> tuple[int, bytes]:
        request = Damaged(method, path, b"", [(b"host", b"localhost"), *headers], body)
        status, _, data = asyncio.run(ask(parent, request, under="/flowers"))
        return status, data

    status, data = said("POST", "/v1/predict", key, (b"content-type", kind), body=body)
    assert (status, json.loads(data)["predictions"][0]["error"]) == (200, None)
    assert said("GET", "/readyz")[0] == 200
    assert said("GET", "/v1/model")[0] == 401
    assert said("GET", "/page/page.css")[0] == 200
    _, page = said("GET", "/")
    assert not re.search(rb'(href|src)="/', page)
    counted = said("GET", "/metrics", key)[1]
    assert b'path="/v1/predict",status="200"' in counted
    assert b'path="/v1/model",status="401"' in counted
    service.close()
    assert said("POST", "/v1/predict", key, (b"content-type", kind), body=body)[0] == 503


@pytest.mark.slow
def test_schemathesis_confirms_the_openapi_description(server: Served) -> None:
    conform(server, 3)


@pytest.mark.exhaustive
def test_schemathesis_confirms_the_openapi_description_with_many_requests(server: Served) -> None:
    conform(server, 150)
