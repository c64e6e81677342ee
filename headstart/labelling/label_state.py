"""Labels of a session: what is known of each image, the classes, and changes that can be undone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final

from headstart.errors import LabelError

AnswerKind = Literal["label", "none", "unsure", "skip"]
"""What an image was answered with: labels, none of the classes, not sure, or not now."""

KINDS: tuple[AnswerKind, ...] = ("label", "none", "unsure", "skip")

SOURCES = ("grid", "cluster", "confirm", "ask", "blind", "folder", "import", "second look")
"""Where a label may come from."""

CLASS_KEYS = "123456789bcdefghijklmopqrtvwxyz"
"""Keys of the classes in the order they are given; a, n, s and u mean all, none, skip and unsure on the page."""


@dataclass(frozen=True)
class Answer:
    """The answer for one image.

    Attributes:
        kind: see ``AnswerKind``.
        labels: names of classes; empty unless ``kind`` is "label".
        source: one of ``SOURCES``.
        time: ISO 8601 in UTC, to the second.
        split: "train", "val" or "test" as imported; "" to derive it.
    """

    kind: AnswerKind
    labels: tuple[str, ...] = ()
    source: str = "grid"
    time: str = ""
    split: str = ""

    def as_json(self) -> list[Any]:
        """Read by ``of_json``."""
        return [self.kind, list(self.labels), self.source, self.time, self.split]

    @classmethod
    def of_json(cls, document: list[Any] | None) -> Answer | None:
        """The reverse of ``as_json``; None stays None."""
        if document is None:
            return None
        kind, labels, source, time, split = document
        if kind not in KINDS:
            raise ValueError(f"unknown answer {kind!r}")
        return cls(kind, tuple(map(str, labels)), str(source), str(time), str(split))


@dataclass(frozen=True)
class LabelClass:
    """A class of a session.

    Attributes:
        name: of the class.
        key: that assigns it on the page; "" if all keys are taken.
    """

    name: str
    key: str


@dataclass(frozen=True)
class LabelChange:
    """One step of a session, with everything that undoes it.

    Attributes:
        text: what it does, in a few words: "label 12 images as rose".
        answers: path -> answers before and after.
        rejected: path -> classes that were rejected for the image, before and after.
        classes: before and after; None if they are unchanged.
        blind: paths of the blind sample before and after; None if unchanged.
    """

    text: str
    answers: Mapping[str, tuple[Answer | None, Answer | None]] = field(default_factory=dict)
    rejected: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=dict)
    classes: tuple[tuple[LabelClass, ...], tuple[LabelClass, ...]] | None = None
    blind: tuple[tuple[str, ...], tuple[str, ...]] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing changes."""
        return not (self.answers or self.rejected or self.classes or self.blind)

    @property
    def paths(self) -> list[str]:
        """Images that it changes."""
        return list(dict.fromkeys([*self.answers, *self.rejected]))

    def inverse(self) -> LabelChange:
        """The change that undoes this one."""
        return LabelChange(
            self.text,
            {path: (after, before) for path, (before, after) in self.answers.items()},
            {path: (after, before) for path, (before, after) in self.rejected.items()},
            None if self.classes is None else (self.classes[1], self.classes[0]),
            None if self.blind is None else (self.blind[1], self.blind[0]),
        )

    def as_json(self) -> dict[str, Any]:
        """Images with equal values are grouped. Read by ``of_json``."""
        groups: dict[tuple[Answer | None, Answer | None], list[str]] = {}
        for path, values in self.answers.items():
            groups.setdefault(values, []).append(path)
        document: dict[str, Any] = {"text": self.text}
        if groups:
            document["answers"] = [[_plain(one), _plain(two), paths] for (one, two), paths in groups.items()]
        if self.rejected:
            document["rejected"] = [[path, list(one), list(two)] for path, (one, two) in self.rejected.items()]
        if self.classes is not None:
            document["classes"] = [[[entry.name, entry.key] for entry in entries] for entries in self.classes]
        if self.blind is not None:
            document["blind"] = [list(paths) for paths in self.blind]
        return document

    @classmethod
    def of_json(cls, document: dict[str, Any]) -> LabelChange:
        """The reverse of ``as_json``.

        Raises:
            LabelError: the document is not a change.
        """
        try:
            answers = {
                str(path): (Answer.of_json(before), Answer.of_json(after))
                for before, after, paths in document.get("answers", [])
                for path in paths
            }
            rejected = {str(p): (tuple(one), tuple(two)) for p, one, two in document.get("rejected", [])}
            classes, blind = document.get("classes"), document.get("blind")
            return cls(
                str(document["text"]),
                answers,
                rejected,
                None if classes is None else (_classes(classes[0]), _classes(classes[1])),
                None if blind is None else (tuple(blind[0]), tuple(blind[1])),
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise LabelError(f"not a change of labels ({error}).") from error


def _plain(answer: Answer | None) -> list[Any] | None:
    return None if answer is None else answer.as_json()


def _classes(entries: Iterable[Any]) -> tuple[LabelClass, ...]:
    return tuple(LabelClass(str(name), str(key)) for name, key in entries)


@final
class LabelState:
    """The labels of a session at one time. Not thread-safe.

    Attributes:
        answers: path -> its answer; unlabelled images are missing.
        rejected: path -> classes that were rejected for it.
        classes: in the order they were added.
        blind: paths of the blind sample, in the order of the draw.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.rejected: dict[str, tuple[str, ...]] = {}
        self.classes: tuple[LabelClass, ...] = ()
        self.blind: tuple[str, ...] = ()
        self.blind_set: frozenset[str] = frozenset()

    def apply(self, change: LabelChange) -> None:
        """Sets the values after a change."""
        for path, (_, answer) in change.answers.items():
            if answer is None:
                self.answers.pop(path, None)
            else:
                self.answers[path] = answer
        for path, (_, names) in change.rejected.items():
            if names:
                self.rejected[path] = names
            else:
                self.rejected.pop(path, None)
        if change.classes is not None:
            self.classes = change.classes[1]
        if change.blind is not None:
            self.blind = change.blind[1]
            self.blind_set = frozenset(self.blind)

    @property
    def names(self) -> list[str]:
        """Names of the classes."""
        return [entry.name for entry in self.classes]

    def split_of(self, path: str) -> str:
        """The split of a labelled image: that of the blind sample, or as imported, else "train"."""
        answer = self.answers.get(path)
        if path in self.blind_set:
            return "test"
        return answer.split if answer is not None and answer.split else "train"

    def added(self, names: Iterable[str]) -> tuple[tuple[LabelClass, ...], tuple[LabelClass, ...]] | None:
        """The classes before and after new names are added, each with the first key that is free.

        Returns:
            None if there is no new name.
        """
        classes = self.classes
        for name in names:
            if name not in [entry.name for entry in classes]:
                taken = {entry.key for entry in classes}
                classes += (LabelClass(name, next((sign for sign in CLASS_KEYS if sign not in taken), "")),)
        return None if classes == self.classes else (self.classes, classes)
