"""HTML elements for notebook output; every text is escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape


def data_address(data: bytes, kind: str) -> str:
    """The data: URL of an encoded image; ``kind`` is the subtype of its media type: "png", "jpeg" or "svg+xml"."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A ``table`` element; the first cell of each row is the row's heading."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row" style="text-align:left">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def paragraph(text: str, *, strong: bool = False) -> str:
    """A ``p`` element, in bold if ``strong``."""
    return f"<p><b>{escape(text)}</b></p>" if strong else f"<p>{escape(text)}</p>"


def image_element(address: str, alternative: str, *, width: int | None = None) -> str:
    """An ``img`` element.

    Args:
        address: a data: URL.
        alternative: alternative text, shown when the image cannot be.
        width: in pixels; None for the width of the image.
    """
    size = f' width="{width}"' if width else ""
    return f'<img src="{escape(address)}" alt="{escape(alternative)}"{size} style="max-width:100%">'
