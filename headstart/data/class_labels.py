"""Class labels of Hugging Face data sets: class names in a table's metadata, and integers in its cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headstart.data.label_cells import SEPARATOR
from headstart.errors import DataError
from headstart.files import parsed_json


@dataclass(frozen=True)
class ClassLabels:
    """A column of class labels.

    Attributes:
        names: of the classes; a cell is an index.
        is_list: whether a cell is a list of indices.
    """

    names: tuple[str, ...]
    is_list: bool

    def cell(self, value: Any) -> str:
        """The text of a cell; "" for a missing label, which is None or -1.

        Raises:
            DataError: an index is out of range.
        """
        if self.is_list:
            return SEPARATOR.join(map(self._name, value or ())) + SEPARATOR
        return "" if value is None or value == -1 else self._name(value)

    def _name(self, value: Any) -> str:
        if isinstance(value, str):
            return value
        index = int(value)
        if not 0 <= index < len(self.names):
            raise DataError(f"the label {index} is not an index of the {len(self.names):,} class names of the table.")
        return self.names[index]


def read_class_labels(schema: Any) -> dict[str, ClassLabels]:
    """Column -> its class labels, from the metadata "huggingface" of an Arrow schema; {} without it.

    Source: the library "datasets", which writes the features of a data set as JSON.
    """
    try:
        document = parsed_json((schema.metadata or {})[b"huggingface"])
        features = document["info"]["features"]
        found = {name: _labels_of(feature) for name, feature in features.items() if name in schema.names}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
    return {name: labels for name, labels in found.items() if labels is not None}


def _labels_of(feature: Any) -> ClassLabels | None:
    """The class labels of a feature: a ClassLabel, or a list of them in any of the notations of ``datasets``."""
    if isinstance(feature, list):
        inner, is_list = feature[0], True
    else:
        is_list = feature.get("_type") in ("Sequence", "List", "LargeList")
        inner = feature["feature"] if is_list else feature
    if not isinstance(inner, dict) or inner.get("_type") != "ClassLabel" or not inner.get("names"):
        return None
    return ClassLabels(tuple(map(str, inner["names"])), is_list)
