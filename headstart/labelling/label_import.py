"""Labels from elsewhere: tables, class folders, and JSON documents of other programs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, final
from urllib.parse import unquote

from headstart.cache.keys import content_key
from headstart.data.dataset import open_data
from headstart.data.image_table import SPLIT_NAMES
from headstart.data.label_cells import SEPARATOR
from headstart.data.sources.addresses import absolute, join, name_of, parent_of, split_address, user_address
from headstart.data.sources.read import read_image
from headstart.data.table_file import read_table_file
from headstart.errors import HeadstartError, LabelError, OptionError, UnreadableImage
from headstart.files import UserPath, parsed_json, path_of, user_path
from headstart.labelling.actions import class_name, now
from headstart.labelling.image_list import ImageList
from headstart.labelling.journal import Journal
from headstart.labelling.label_state import SOURCES, Answer, LabelChange, LabelState
from headstart.labelling.label_table import LabelTable

EXPECTED: Final = "expected columns path and label (or labels)"


def rows_of(file: Path) -> list[dict[str, str]]:
    """Column -> cell, for each row of a table in any encoding and dialect that ``headstart train`` reads.

    Raises:
        DataError: the file cannot be read as a table.
        LabelError: it has only a header, with other columns.
    """
    table = read_table_file(str(file))
    rows = [dict(zip(table.names, cells, strict=True)) for cells in table.rows()]
    if not rows and ("path" not in table.names or not {"label", "labels"} & set(table.names)):
        raise LabelError(f"{file}: {EXPECTED}. Found: {', '.join(table.names)}.")
    return [row | {"path": path_of(row["path"])} if "path" in row else row for row in rows]


def answers_of_rows(file: str, rows: Sequence[Mapping[str, str]]) -> dict[str, Answer]:
    """Path -> answer of each row of a table that has a label.

    Args:
        file: for messages.
        rows: column -> cell.

    Raises:
        LabelError: columns are missing, a split is unknown, or the name of a class is invalid.
    """
    if not rows:
        return {}
    several = "label" not in rows[0]
    if "path" not in rows[0] or (several and "labels" not in rows[0]):
        raise LabelError(f"{file}: {EXPECTED}. Found: {', '.join(rows[0])}.")
    found: dict[str, Answer] = {}
    for number, row in enumerate(rows, start=2):
        cell, split = row.get("labels" if several else "label", "").strip(), row.get("split", "").strip().lower()
        if split and split not in SPLIT_NAMES:
            raise LabelError(f"{file}, row {number}: split is {split!r}. Expected one of {', '.join(SPLIT_NAMES)}.")
        names = [part for part in cell.split(SEPARATOR) if part.strip()] if several else [cell] if cell else []
        if not row["path"] or (not names and not several):
            continue
        source = row.get("source", "") if row.get("source", "") in SOURCES else "import"
        try:
            labels = tuple(dict.fromkeys(class_name(name, multi_label=several) for name in names))
        except OptionError as error:
            raise LabelError(f"{file}, row {number}: {error}") from error
        kept = "" if not split or split == "train" or source == "blind" else SPLIT_NAMES[split]
        found[row["path"]] = Answer("label" if labels else "none", labels, source, row.get("time", "") or now(), kept)
    return found


def change_of_answers(
    found: Mapping[str, Answer], state: LabelState, *, text: str, replace_all: bool = False
) -> LabelChange:
    """The change that takes answers from elsewhere; classes are added in the order they occur.

    Args:
        found: path -> answer.
        state: before.
        text: of the change.
        replace_all: whether labelled images that are missing in ``found`` become unlabelled.
    """
    answers: dict[str, tuple[Answer | None, Answer | None]] = {}
    for path, after in found.items():
        before = state.answers.get(path)
        if before is None or (before.kind, before.labels, before.split) != (after.kind, after.labels, after.split):
            answers[path] = before, after
    for path, before in state.answers.items() if replace_all else ():
        if path not in found and before.kind == "label":
            answers[path] = before, None
    names = dict.fromkeys(name for answer in found.values() for name in answer.labels)
    return LabelChange(text, answers, classes=state.added(names))


def change_of_table(journal: Journal, table: LabelTable) -> LabelChange:
    """The change that takes a table without a journal, or edits of the table by hand since the last session.

    Raises:
        LabelError: a row is invalid, see ``answers_of_rows``.
        DataError: the table cannot be read, see ``rows_of``.
    """
    last = journal.events[-1] if journal.events else {"event": ""}
    is_new = not (journal.done or journal.events or journal.state.answers)
    was_edited = last["event"] == "closed" and last["table"] != table.digest()
    text = "take the labels of the table"
    if not table.file.exists() or not (is_new or was_edited):
        return LabelChange(text)
    found = answers_of_rows(str(table.file), rows_of(table.file))
    return change_of_answers(found, journal.state, text=text, replace_all=True)


def adopt_table(journal: Journal, table: LabelTable) -> None:
    """Takes labels of a table without a journal, or changes that were made to it by hand since the last session.

    Raises:
        LabelError: a row is invalid, see ``answers_of_rows``.
        DataError: the table cannot be read, see ``rows_of``.
        OutputError: the table or the journal cannot be written.
    """
    change = change_of_table(journal, table)
    if not change.is_empty:
        journal.do(change)
    elif table.file.exists() and (journal.events or journal.done) and _has_unknown_rows(journal, table):
        table.keep_aside()  # edited after the process was killed: which of the two is newer is not known
    text = table.text(journal.state)
    if table.digest() != table.digest_of(text):
        table.write(text)


def _has_unknown_rows(journal: Journal, table: LabelTable) -> bool:
    """Whether a table has a row that the journal has never had: not only one that lags behind the journal."""
    if table.digest() == table.digest_of(table.text(journal.state)):
        return False
    ever = {(path, answer.labels) for path, answer in journal.state.answers.items()}
    for change in (*journal.done, *journal.undone):
        ever |= {(path, one.labels) for path, both in change.answers.items() for one in both if one is not None}
    try:
        found = answers_of_rows(str(table.file), rows_of(table.file))
    except HeadstartError:
        return True
    return any((path, answer.labels) not in ever for path, answer in found.items())


@final
class ImageFinder:
    """Finds the image of a session that a label from elsewhere is for.

    Args:
        images: of the session.
        keys: content hashes of the images; None before they are known.
    """

    def __init__(self, images: ImageList, keys: Sequence[bytes] | None) -> None:
        self._images = images
        self._by_address = {address: number for number, address in enumerate(images.addresses)}
        self._by_name: dict[str, int | None] = {}
        for number in range(len(images)):
            name = images.name(number)
            self._by_name[name] = None if name in self._by_name else number
        self._by_key = {key: number for number, key in reversed(list(enumerate(keys or ()))) if key}

    def find(self, written: str, base: str) -> int | None:
        """The image that a label is for; None without one.

        It has this address or this path in the session's table, else the same content, else alone the same name.

        Args:
            written: address, or path as another program writes it.
            base: folder that relative paths start at.
        """
        address = absolute(join(base, written))
        for found in (self._by_address.get(address), self._images.number_of(written)):
            if found is not None:
                return found
        if self._by_key:
            try:
                if (found := self._by_key.get(content_key(read_image(address)))) is not None:
                    return found
            except UnreadableImage:
                pass
        container, member = split_address(written)
        name = name_of(member or container)
        found = self._by_name.get(name)
        if found is None and name[8:9] == "-":  # Label Studio puts eight digits before the name of an upload
            found = self._by_name.get(name[9:])
        return found


Labelled = tuple[str, Answer]
"""Address as written, and its answer."""


def _of_csv(file: Path) -> Iterator[Labelled]:
    yield from answers_of_rows(str(file), rows_of(file)).items()


def _of_folders(folder: Path) -> Iterator[Labelled]:
    dataset, time = open_data(folder, min_classes=1), now()
    for place, address in enumerate(dataset.files()):
        row = dataset.labels[place]
        names = [dataset.classes[i] for i in (row.nonzero()[0] if dataset.multi_label else [row])]
        yield address, Answer("label", tuple(class_name(name, multi_label=False) for name in names), "folder", time)


def _of_coco(file: Path) -> Iterator[Labelled]:
    document, time = _json(file, dict), now()
    names = {entry["id"]: class_name(entry["name"], multi_label=False) for entry in document["categories"]}
    labels: dict[Any, list[str]] = {}
    for entry in document["annotations"]:
        labels.setdefault(entry["image_id"], []).append(names[entry["category_id"]])
    for entry in document["images"]:
        if entry["id"] in labels:
            given = tuple(dict.fromkeys(labels[entry["id"]]))
            yield str(entry["file_name"]), Answer("label", given, "import", time)


def _of_label_studio(file: Path) -> Iterator[Labelled]:
    time = now()
    for task in _json(file, list):
        data = task.get("data", task)
        written = next((v for v in data.values() if isinstance(v, str)), "") if "image" not in data else data["image"]
        choices = list(_choices(task))
        if choices:
            labels = tuple(dict.fromkeys(class_name(name, multi_label=False) for name in choices))
            yield unquote(str(written).rpartition("?d=")[2]), Answer("label", labels, "import", time)


def _choices(task: Mapping[str, Any]) -> Iterator[str]:
    """Choices of the first annotation that was not cancelled; or of the short form of the document."""
    short = task.get("choice", [])
    yield from short.get("choices", []) if isinstance(short, dict) else [short] if isinstance(short, str) else short
    for annotation in task.get("annotations", []):
        if not annotation.get("was_cancelled"):
            for result in annotation.get("result", []):
                yield from result.get("value", {}).get("choices", [])
            return


def _json(file: Path, kind: type[Any]) -> Any:
    document = parsed_json(file.read_bytes())
    if not isinstance(document, kind):
        raise TypeError(f"expected a JSON {'list' if kind is list else 'object'}")
    return document


def _reason(error: Exception) -> str:
    """Why a file cannot be read, in words; the message of a missing key is only its name."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    if isinstance(error, TypeError | AttributeError) and "expected a JSON" not in str(error):
        return "an entry is not of the expected type"
    return str(error)


READERS: Final[dict[str, Callable[[Path], Iterable[Labelled]]]] = {
    "csv": _of_csv,
    "folders": _of_folders,
    "coco": _of_coco,
    "label-studio": _of_label_studio,
}
"""Kind of an import -> its reader."""


def read_labels(
    file: UserPath, kind: str, finder: ImageFinder, images: ImageList, *, multi_label: bool
) -> tuple[dict[str, Answer], list[str]]:
    """Labels from elsewhere for the images of a session.

    Args:
        file: table, JSON document, or folder of class folders.
        kind: key of ``READERS``.
        finder: of the session's images.
        images: of the session.
        multi_label: whether an image may have several labels.

    Returns:
        Path -> answer, and the entries that are for no image of the session.

    Raises:
        LabelError: the file is not of this kind, or has several labels for an image of a session with one.
        OptionError: the kind is unknown.
        DataError: the folder has no class folders.
    """
    if kind not in READERS:
        raise OptionError(f"kind {kind!r}: expected one of {', '.join(READERS)}.")
    path = user_path(file)
    base = user_address(file) if os.path.isdir(path) else parent_of(absolute(user_address(file)))
    found: dict[str, Answer] = {}
    lost = []
    try:
        for written, answer in READERS[kind](path):
            for name in answer.labels:
                class_name(name, multi_label=multi_label)  # with the separator of several labels it would be two
            if not multi_label and len(answer.labels) > 1:
                raise LabelError(f"{file}: {written} has several labels. Open a session for several labels per image.")
            number = finder.find(written, base)
            if number is None:
                lost.append(written)
            else:
                found[images.paths[number]] = answer
    except OptionError as error:
        raise LabelError(f"{file}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LabelError(f"{file}: not a file of kind {kind} ({_reason(error)}).") from error
    return found, lost
