"""Multipart forms (RFC 7578) in memory: tolerant of what real clients send, bounded for hostile ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import final
from urllib.parse import unquote_to_bytes

from starlette.requests import Request

from headstart.serve.errors import Refusal

MOST_PARTS = 1_000
"""Parts of one form; beyond, 400."""

LONGEST_HEAD = 4_096
"""Bytes of the headers of one part; beyond, 400. Quotes that never end cost the square of it: 0.4 ms for each part."""

LONGEST_BOUNDARY = 256
"""Characters; RFC 2046 allows 70."""

MOST_LOOKALIKES = 10_000
"""Lines in the content that begin like the boundary without being it; beyond, 400: searching must stay cheap."""

_PARAMETER = re.compile(r';\s*([^\s=;"]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;\s]*))', re.DOTALL)
_AFTER_BOUNDARY = re.compile(rb"(--)|[ \t]*\r\n")
_EXTENDED = re.compile(r"(utf-8|iso-8859-1)'[^']*'(.*)", re.IGNORECASE | re.DOTALL)
"""A parameter's value with its charset, as RFC 5987 has it; other charsets need not be understood."""


@dataclass(frozen=True)
class Part:
    """One part of a form.

    Attributes:
        name: of the field.
        filename: as it was sent; "" where there is none.
        data: the content.
    """

    name: str
    filename: str
    data: bytes


@final
class Form:
    """The parts of a form, in order."""

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts

    def files(self, name: str, *, most: int) -> list[Part]:
        """The files of a field, at least one.

        Args:
            name: of the field.
            most: files that are accepted.

        Raises:
            Refusal: the form has no such field (422), or too many files (413).
        """
        found = [part for part in self.parts if part.name == name]
        if not found:
            fields = ", ".join(repr(own[:40]) for own in list(dict.fromkeys(part.name for part in self.parts))[:5])
            raise Refusal(
                422,
                f"The form has no field '{name}'; found: {fields or 'no field at all'}. "
                f"Send each image in the field '{name}': curl -F {name}=@image.jpg URL",
            )
        if len(found) > most:
            raise Refusal(413, f"{len(found):,} images in one request; at most {most:,} are accepted.")
        return found

    def text(self, name: str) -> str:
        """The text of a field.

        Raises:
            Refusal: the form has no such field, or it is not UTF-8 (422).
        """
        found = next((part for part in self.parts if part.name == name), None)
        if found is None:
            raise Refusal(422, f"The form has no field '{name}'.")
        try:
            return found.data.decode()
        except UnicodeDecodeError:
            raise Refusal(422, f"The field '{name}' is not UTF-8 text.") from None


async def read_form(request: Request) -> Form:
    """The form that a request carries.

    Raises:
        Refusal: the body is another kind of document (422), or a damaged form (400).
    """
    body = b"".join([piece async for piece in request.stream()])
    return Form(parse_form(request.headers.get("content-type", ""), body))


def parse_form(content_type: str, body: bytes) -> list[Part]:
    """The parts of a form. What stands before the first boundary and behind the last one is ignored.

    Args:
        content_type: the header of the request.
        body: the whole body.

    Raises:
        Refusal: as ``read_form``.
    """
    kind, options = parse_options(content_type)
    if kind != "multipart/form-data":
        raise Refusal(
            422,
            f"Expected a multipart form (Content-Type: multipart/form-data), found "
            f"{repr(kind[:80]) if kind else 'no Content-Type'}. Send images as files: curl -F files=@image.jpg URL",
        )
    boundary = options.get("boundary", "").encode("latin-1", "replace")
    if not 0 < len(boundary) <= LONGEST_BOUNDARY:
        raise Refusal(400, f"The Content-Type names no boundary of 1 to {LONGEST_BOUNDARY} characters.")
    parts: list[Part] = []
    start: int | None = None
    for begin, end, last in _boundaries(body, boundary):
        if start is not None:
            parts.append(_part(body, start, begin))
            if len(parts) > MOST_PARTS:
                raise Refusal(400, f"The form has more than {MOST_PARTS:,} parts.")
        if last:
            return parts
        start = end
    if start is None:
        raise Refusal(400, "The body does not contain the boundary that the Content-Type names.")
    raise Refusal(400, "The form ends before its last boundary: the body is incomplete.")


def parse_options(header: str) -> tuple[str, dict[str, str]]:
    """A header such as ``form-data; name="files"``: its value in lower case, and its parameters.

    A parameter with a charset (``filename*=UTF-8''...``, RFC 5987) wins over the one without.
    """
    value, _, rest = header.partition(";")
    options: dict[str, str] = {}
    extended: dict[str, str] = {}
    for name, quoted, plain in _PARAMETER.findall(f";{rest}"):
        text = re.sub(r'\\(["\\])', r"\1", quoted) if quoted else plain
        if not name.endswith("*"):
            options.setdefault(name.lower(), text)
        elif found := _EXTENDED.fullmatch(text):
            with suppress(UnicodeDecodeError):
                extended.setdefault(name[:-1].lower(), unquote_to_bytes(found[2]).decode(found[1]))
    return value.strip().lower(), options | extended


def _boundaries(body: bytes, boundary: bytes) -> Iterator[tuple[int, int, bool]]:
    """(where the line begins, where what follows it begins, whether it is the last) of each boundary."""
    mark, lookalikes = b"--" + boundary, 0
    at = body.find(mark)
    while at >= 0:
        behind = _AFTER_BOUNDARY.match(body, at + len(mark))
        if behind is not None and (at == 0 or body[at - 2 : at] == b"\r\n"):
            yield max(0, at - 2), behind.end(), behind[1] is not None
        else:
            lookalikes += 1
            if lookalikes > MOST_LOOKALIKES:
                raise Refusal(400, "The boundary occurs within the content. Choose another one.")
        at = body.find(mark, at + len(mark))


def _part(body: bytes, start: int, end: int) -> Part:
    """The part between two boundaries."""
    # Some clients send an empty content without a line of its own: its line break is then the boundary's.
    head_end = body.find(b"\r\n\r\n", start, min(end + 2, start + LONGEST_HEAD))
    if head_end < 0:
        raise Refusal(400, f"A part of the form has no headers, or more than {LONGEST_HEAD:,} bytes of them.")
    head = _text(body[start:head_end]).replace("\r\n ", " ").replace("\r\n\t", " ")
    for line in head.split("\r\n"):
        field, _, value = line.partition(":")
        if field.strip().lower() == "content-disposition":
            _, options = parse_options(value)
            if "name" in options:
                return Part(options["name"], options.get("filename", ""), body[head_end + 4 : end])
    raise Refusal(400, 'A part of the form has no name (Content-Disposition: form-data; name="...").')


def _text(data: bytes) -> str:
    """Clients send names in UTF-8; what is none is taken for Latin-1."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")
