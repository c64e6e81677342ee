"""Multipart forms of real and of hostile clients."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest

from headstart.serve import multipart as forms
from headstart.serve.errors import HttpError
from headstart.serve.multipart import FormPart, MultipartForm, parse_form, parse_options

KIND = "multipart/form-data; boundary=b"


def body(*parts: tuple[bytes, bytes]) -> bytes:
    return b"".join(b"--b\r\n" + head + b"\r\n\r\n" + data + b"\r\n" for head, data in parts) + b"--b--\r\n"


def one(head: bytes, data: bytes = b"data") -> FormPart:
    (part,) = parse_form(KIND, body((head, data)))
    return part


@pytest.mark.parametrize(
    ("head", "name", "filename"),
    [
        (b'Content-Disposition: form-data; name="files"; filename="a.jpg"', "files", "a.jpg"),
        (b"content-disposition:form-data;name=files;filename=a.jpg", "files", "a.jpg"),
        (b'Content-Type: image/jpeg\r\nContent-Disposition: form-data; name="files"', "files", ""),
        (b'Content-Disposition: form-data; name="files"; filename=""', "files", ""),
        (b'Content-Disposition: form-data; name="files"; filename="a \\"b\\"; c.jpg"', "files", 'a "b"; c.jpg'),
        (b'Content-Disposition: form-data; name="files"; filename="C:\\dir\\a.jpg"', "files", "C:\\dir\\a.jpg"),
        ('Content-Disposition: form-data; name="files"; filename="é.jpg"'.encode(), "files", "é.jpg"),
        ('Content-Disposition: form-data; name="files"; filename="é.jpg"'.encode("latin-1"), "files", "é.jpg"),
        (
            b"Content-Disposition: form-data; name=\"files\"; filename*=UTF-8''%e2%82%ac%20rate.jpg",
            "files",
            "€ rate.jpg",
        ),
        (
            b"Content-Disposition: form-data; name=files; filename=\"EURO.jpg\"; filename*=utf-8'en'%e2%82%ac.jpg",
            "files",
            "€.jpg",
        ),
        (
            b"Content-Disposition: form-data; name=files; filename*=iso-8859-1''%a3.jpg; filename=p.jpg",
            "files",
            "£.jpg",
        ),
        (b"Content-Disposition: form-data; name=files; filename*=UTF-8''%ff; filename=p.jpg", "files", "p.jpg"),
        (b"Content-Disposition: form-data; name=files; filename*=utf-99''x; filename=p.jpg", "files", "p.jpg"),
        (b'Content-Disposition: form-data;\r\n name="files";\r\n\tfilename="a.jpg"', "files", "a.jpg"),
    ],
)
def test_field_and_file_names_of_various_clients(head: bytes, name: str, filename: str) -> None:
    assert one(head) == FormPart(name, filename, b"data")


HEAD = b'Content-Disposition: form-data; name="files"; filename="a"'


@pytest.mark.parametrize("data", [b"", b"\r\n", b"x--b\r\n", b"\r\n--c", b"x\r\n--bx", b"\r\n\r\n", b"\0" * 9])
def test_content_is_what_was_sent(data: bytes) -> None:
    assert one(HEAD, data).data == data


def test_preamble_and_epilogue_are_ignored() -> None:
    whole = b"This is a message in MIME.\r\n" + body((HEAD, b"data")) + b"epilogue --b\r\n" + HEAD
    assert parse_form(KIND, whole) == [FormPart("files", "a", b"data")]
    padded = body((HEAD, b"data")).replace(b"--b\r\n", b"--b \t\r\n")
    assert parse_form(KIND.replace("=b", '="b"'), padded) == [FormPart("files", "a", b"data")]
    assert parse_form(KIND, b"--b\r\n" + HEAD + b"\r\n\r\n--b--") == [FormPart("files", "a", b"")]


@pytest.mark.parametrize(
    ("kind", "data", "status", "words"),
    [
        ("", b"x", 422, "no Content-Type"),
        ("application/json", b"{}", 422, "'application/json'"),
        ("multipart/form-data", b"x", 400, "no boundary"),
        ("multipart/form-data; boundary=" + "b" * 300, b"x", 400, "boundary"),
        (KIND, b"", 400, "does not contain the boundary"),
        (KIND, body((HEAD, b"data"))[:-6], 400, "incomplete"),
        (KIND, body((b"X: y", b"data")), 400, "no name"),
        (KIND, body((b"X: " + b"y" * 20_000, b"data")), 400, "headers"),
        (KIND, body(*[(HEAD, b"")] * 1_100), 400, "more than 1,000 parts"),
    ],
)
def test_an_invalid_form_is_refused_with_the_reason(kind: str, data: bytes, status: int, words: str) -> None:
    with pytest.raises(HttpError, match=words) as refused:
        parse_form(kind, data)
    assert refused.value.status == status


def test_a_missing_field_is_reported_with_the_fields_found() -> None:
    form = MultipartForm([FormPart("file", "a.jpg", b""), FormPart("label", "", b"\xff")])
    with pytest.raises(
        HttpError, match=r"no field 'files'; found: 'file', 'label'.*curl -F files=@image\.jpg"
    ) as refused:
        form.files("files", max_count=3)
    assert refused.value.status == 422
    with pytest.raises(HttpError, match="not UTF-8"):
        form.text("label")
    with pytest.raises(HttpError, match="2 images in one request; the limit is 1") as many:
        MultipartForm([FormPart("file", "", b"")] * 2).files("file", max_count=1)
    assert many.value.status == 413


def test_content_full_of_boundaries_is_parsed_quickly() -> None:
    began = time.monotonic()
    for piece in (b"x--b", b"\r\n--bx\r\n"):
        with pytest.raises(HttpError, match="boundary occurs"):
            parse_form(KIND, b"--b\r\n" + HEAD + b"\r\n\r\n" + piece * 2_000_000)
    assert forms.MAX_FALSE_BOUNDARIES == 10_000
    assert time.monotonic() - began < 5


def test_options_of_a_header() -> None:
    assert parse_options('Form-Data; A="x;y"; b=z ;c') == ("form-data", {"a": "x;y", "b": "z"})
    assert parse_options(";;;=;") == ("", {})


def test_unterminated_quotes_are_parsed_quickly() -> None:
    """Regression: a request of 16 MB blocked the event loop for seconds."""
    spoilt = (b'X: "' + 4_000 // 6 * b'; a="\\')[:16_000]
    named = b'Content-Disposition: form-data; name="files"'
    started = time.process_time()
    for head in (named + b"\r\n" + spoilt[:3_900], named + 2_600 * b'; a="\\'):
        with suppress(HttpError):
            parse_form(KIND, body(*500 * [(head, b"")]))
    assert time.process_time() - started < 1
