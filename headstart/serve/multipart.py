"""Parser for multipart forms (RFC 7578) in memory: lenient with real clients, bounded against hostile ones.

Why this is not python-multipart: docs/decisions/multipart-forms.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, final
from urllib.parse import unquote_to_bytes

from .errors import HttpError

if TYPE_CHECKING:
    from starlette.requests import Request

MAX_PARTS = 1_000
"""Maximum number of parts of a form; more are refused with 400."""

MAX_PART_HEADER_BYTES = 4_096
"""Maximum size of the headers of a part in bytes; more are refused with 400. Unterminated quotes take quadratic time to
match: 0.4 ms per part of this size."""

MAX_BOUNDARY_LENGTH = 256
"""Maximum length of a boundary; RFC 2046 allows 70 characters."""

MAX_FALSE_BOUNDARIES = 10_000
"""Maximum number of occurrences of the boundary text in the content; more are refused with 400, to bound the search."""

_PARAMETER = re.compile(r';\s*([^\s=;"]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;\s]*))', re.DOTALL)
_AFTER_BOUNDARY = re.compile(rb"(--)|[ \t]*\r\n")
_EXTENDED = re.compile(r"(utf-8|iso-8859-1)'[^']*'(.*)", re.IGNORECASE | re.DOTALL)
"""Value of a parameter with a charset (RFC 5987, which requires these two charsets only)."""


@dataclass(frozen=True)
class FormPart:
    """One part of a form.

    Attributes:
        name: name of the field.
        filename: file name as it was sent; "" if there is none.
        data: content of the field.
    """

    name: str
    filename: str
    data: bytes


@final
class MultipartForm:
    """Parts of a form, in order."""

    def __init__(self, parts: list[FormPart]) -> None:
        self.parts = parts

    def files(self, name: str, *, max_count: int) -> list[FormPart]:
        """Files of a field, at least one.

        Args:
            name: name of the field.
            max_count: maximum number of files.

        Raises:
            HttpError: the form has no such field (422), or too many files (413).
        """
        found = [part for part in self.parts if part.name == name]
        if not found:
            names = list(dict.fromkeys(part.name for part in self.parts))
            fields = ", ".join(repr(found_name[:40]) for found_name in names[:5])
            raise HttpError(
                422,
                f"The form has no field '{name}'; found: {fields or 'no fields'}. "
                f"Send each image in the field '{name}': curl -F {name}=@image.jpg URL",
            )
        if len(found) > max_count:
            raise HttpError(413, f"{len(found):,} images in one request; the limit is {max_count:,}.")
        return found

    def text(self, name: str) -> str:
        """Text of a field.

        Raises:
            HttpError: the form has no such field, or it is not UTF-8 (422).
        """
        found = next((part for part in self.parts if part.name == name), None)
        if found is None:
            raise HttpError(422, f"The form has no field '{name}'.")
        try:
            return found.data.decode()
        except UnicodeDecodeError:
            raise HttpError(422, f"The field '{name}' is not UTF-8 text.") from None


async def read_form(request: Request) -> MultipartForm:
    """Reads and parses the form of a request.

    Raises:
        HttpError: the body has another content type (422), or the form is damaged (400).
    """
    body = b"".join([piece async for piece in request.stream()])
    return MultipartForm(parse_form(request.headers.get("content-type", ""), body))


def parse_form(content_type: str, body: bytes) -> list[FormPart]:
    """Parses a form. Text before the first boundary (preamble) and after the last one (epilogue) is ignored.

    Args:
        content_type: Content-Type header of the request.
        body: complete body.

    Raises:
        HttpError: as ``read_form``.
    """
    kind, options = parse_options(content_type)
    if kind != "multipart/form-data":
        raise HttpError(
            422,
            f"Expected a multipart form (Content-Type: multipart/form-data), found "
            f"{repr(kind[:80]) if kind else 'no Content-Type'}. Send images as files: curl -F files=@image.jpg URL",
        )
    boundary = options.get("boundary", "").encode("latin-1", "replace")
    if not 0 < len(boundary) <= MAX_BOUNDARY_LENGTH:
        raise HttpError(400, f"The Content-Type has no boundary of 1 to {MAX_BOUNDARY_LENGTH} characters.")
    parts: list[FormPart] = []
    start: int | None = None
    for begin, end, last in _boundaries(body, boundary):
        if start is not None:
            parts.append(_part(body, start, begin))
            if len(parts) > MAX_PARTS:
                raise HttpError(400, f"The form has more than {MAX_PARTS:,} parts.")
        if last:
            return parts
        start = end
    if start is None:
        raise HttpError(400, "The body does not contain the boundary of the Content-Type header.")
    raise HttpError(400, "The form ends before its last boundary: the body is incomplete.")


def parse_options(header: str) -> tuple[str, dict[str, str]]:
    """Parses a header such as ``form-data; name="files"`` into its lower-case value and its parameters.

    A parameter with a charset (``filename*=UTF-8''...``, RFC 5987) takes precedence over the one without.
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
    """Yields (start of the boundary line, start of the next part, whether it is the closing boundary)."""
    mark, lookalikes = b"--" + boundary, 0
    at = body.find(mark)
    while at >= 0:
        behind = _AFTER_BOUNDARY.match(body, at + len(mark))
        if behind is not None and (at == 0 or body[at - 2 : at] == b"\r\n"):
            yield max(0, at - 2), behind.end(), behind[1] is not None
        else:
            lookalikes += 1
            if lookalikes > MAX_FALSE_BOUNDARIES:
                raise HttpError(400, "The boundary occurs within the content too often. Choose another boundary.")
        at = body.find(mark, at + len(mark))


def _part(body: bytes, start: int, end: int) -> FormPart:
    """Parses the part between two boundaries."""
    # Some clients leave out the line break after an empty content: the one of the boundary then ends the headers.
    head_end = body.find(b"\r\n\r\n", start, min(end + 2, start + MAX_PART_HEADER_BYTES))
    if head_end < 0:
        raise HttpError(
            400, f"A part of the form has no headers, or more than {MAX_PART_HEADER_BYTES:,} bytes of them."
        )
    head = _text(body[start:head_end]).replace("\r\n ", " ").replace("\r\n\t", " ")
    for line in head.split("\r\n"):
        field, _, value = line.partition(":")
        if field.strip().lower() == "content-disposition":
            _, options = parse_options(value)
            if "name" in options:
                return FormPart(options["name"], options.get("filename", ""), body[head_end + 4 : end])
    raise HttpError(400, 'A part of the form has no name (Content-Disposition: form-data; name="...").')


def _text(data: bytes) -> str:
    """Decodes header text: UTF-8, as browsers send it, or else Latin-1."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")
