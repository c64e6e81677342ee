"""Small pieces of HTML, for notebooks: everything that is shown is escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape


def data_address(data: bytes, kind: str) -> str:
    """A data: address of a picture's bytes; ``kind`` is "png" or "jpeg"."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first cell of each row is its heading."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row" style="text-align:left">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def paragraph(text: str, *, strong: bool = False) -> str:
    """A paragraph."""
    return f"<p><b>{escape(text)}</b></p>" if strong else f"<p>{escape(text)}</p>"


def picture(address: str, words: str, *, width: int | None = None) -> str:
    """A picture.

    Args:
        address: a data: address.
        words: that stand for it.
        width: in pixels.
    """
    size = f' width="{width}"' if width else ""
    return f'<img src="{escape(address)}" alt="{escape(words)}"{size} style="max-width:100%">'
