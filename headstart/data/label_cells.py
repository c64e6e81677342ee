"""Cells of a table that hold several labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

SEPARATOR: Final = "|"
"""Separator of the labels of an image, and of the entries of other lists, in a cell of text."""


def join_labels(labels: Sequence[Sequence[str]]) -> list[str]:
    """Cells of a column of labels that ``table.read_table`` reads back unchanged."""
    cells = [SEPARATOR.join(names) for names in labels]
    if any(SEPARATOR in cell for cell in cells):
        return cells
    return [cell and cell + SEPARATOR for cell in cells]  # or a comma in a label would be read as a separator
