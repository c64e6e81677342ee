"""Actions of a session: each is checked against the state of the labels and becomes one change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from headstart.data.class_folders import class_name as valid_class_name
from headstart.data.label_cells import SEPARATOR
from headstart.errors import OptionError, StaleAction
from headstart.labelling.label_state import SOURCES, Answer, AnswerKind, LabelChange, LabelClass, LabelState

ANSWERS: Final[tuple[AnswerKind, ...]] = ("none", "unsure", "skip")
"""Answers other than a label."""


@dataclass(frozen=True)
class ActionInput:
    """What an action is checked against.

    Attributes:
        state: the labels.
        multi_label: whether an image may have any number of labels.
        paths_of: list of image numbers, as sent -> their paths, and those of the others of their stacks.
        enlarged: number -> paths of the blind sample with so many more images.
    """

    state: LabelState
    multi_label: bool
    paths_of: Callable[[object], list[str]]
    enlarged: Callable[[int], tuple[str, ...]]


Action = Mapping[str, Any]


def change_of(action: Action, given: ActionInput) -> LabelChange:
    """The change that an action makes.

    Args:
        action: document with the key "do", see ``ACTIONS``.
        given: see ``ActionInput``.

    Raises:
        OptionError: an action or a value of it is unknown.
        StaleAction: it names a class that does not exist (any more).
    """
    kind = action.get("do") if isinstance(action, Mapping) else None
    make = ACTIONS.get(kind) if isinstance(kind, str) else None
    if make is None:
        raise OptionError(f"unknown action. Expected one of {', '.join(ACTIONS)}.")
    return make(action, given)


def class_name(written: object, *, multi_label: bool) -> str:
    """The name of a class, see ``class_folders.class_name``.

    Raises:
        OptionError: it is not a valid name, or has the separator of several labels.
    """
    name = valid_class_name(written)
    if multi_label and SEPARATOR in name:
        raise OptionError(f"The name of the class contains {SEPARATOR}, which separates several labels.")
    return name


def now() -> str:
    """The time in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def images_text(count: int) -> str:
    """A number of images in words: "1 image", "12 images"."""
    return f"{count:,} image{'s' if count != 1 else ''}"


def _existing(name: object, given: ActionInput) -> str:
    found = class_name(name, multi_label=given.multi_label)
    if found not in given.state.names:
        raise StaleAction(
            f"There is no class {found!r} any more: it was renamed, merged or deleted. Load the page again."
        )
    return found


def _source(action: Action, default: str) -> str:
    source = action.get("source", default)
    if source not in SOURCES:
        raise OptionError(f"source {source!r}: expected one of {', '.join(SOURCES)}.")
    return str(source)


def _answered(
    paths: Iterable[str], answer: Callable[[str, Answer | None], Answer | None], given: ActionInput
) -> dict[str, tuple[Answer | None, Answer | None]]:
    """Path -> answers before and after, of images whose answer changes; those of the blind sample have that source."""
    state, found = given.state, {}
    for path in paths:
        before = state.answers.get(path)
        after = answer(path, before)
        if after is not None and path in state.blind_set and after.source not in ("import", "folder"):
            after = replace(after, source="blind")
        if before is None or after is None or (before.kind, before.labels) != (after.kind, after.labels):
            if before is not after:
                found[path] = before, after
        elif after.source != before.source and "blind" in (after.source, before.source):
            found[path] = before, after  # the same answer given blind counts as such
    return found


def _label(action: Action, given: ActionInput) -> LabelChange:
    if isinstance(action.get("label"), list):
        return _labels(action, given)
    name = class_name(action.get("label"), multi_label=given.multi_label)
    refused = given.paths_of(action.get("rejected", []))
    paths = [path for path in given.paths_of(action.get("images")) if path not in set(refused)]
    change = labelled(paths, name, _source(action, "grid"), given)
    return replace(change, rejected=_rejected(refused, name, given.state))


def _labels(action: Action, given: ActionInput) -> LabelChange:
    """Replaces the labels of images by several; classes that are new are added."""
    if not given.multi_label:
        raise OptionError("label: a list of classes applies only to sessions with several labels per image.")
    names = tuple(dict.fromkeys(class_name(name, multi_label=True) for name in action["label"]))
    if not names:
        raise OptionError("label: the list of classes is empty.")
    after = Answer("label", names, _source(action, "grid"), now())
    answers = _answered(given.paths_of(action.get("images")), lambda *_: after, given)
    text = f"label {images_text(len(answers))} as {', '.join(names)}"
    return LabelChange(text, answers, classes=given.state.added(names))


def _keep(action: Action, given: ActionInput) -> LabelChange:
    """Second look: the labels are right, and are not offered as possible mistakes again."""
    time, answers = now(), {}
    for path in given.paths_of(action.get("images")):
        before = given.state.answers.get(path)
        if before is not None and before.labels and before.source not in ("second look", "blind"):
            answers[path] = before, replace(before, source="second look", time=time)
    return LabelChange(f"keep the labels of {images_text(len(answers))}", answers)


def labelled(paths: Iterable[str], name: str, source: str, given: ActionInput) -> LabelChange:
    """Labels images; the class is added if it is new. With several labels the new one joins the others."""
    time = now()

    def answer(_path: str, before: Answer | None) -> Answer:
        others = before.labels if given.multi_label and before is not None else ()
        return Answer("label", tuple(dict.fromkeys((*others, name))), source, time)

    answers = _answered(paths, answer, given)
    return LabelChange(f"label {images_text(len(answers))} as {name}", answers, classes=given.state.added([name]))


def _answer(action: Action, given: ActionInput) -> LabelChange:
    kind = action.get("answer")
    if kind not in ANSWERS:
        raise OptionError(f"answer {kind!r}: expected one of {', '.join(ANSWERS)}.")
    source, time = _source(action, "grid"), now()
    answers = _answered(given.paths_of(action.get("images")), lambda *_: Answer(kind, (), source, time), given)
    return LabelChange(f"answer {kind} for {images_text(len(answers))}", answers)


def _clear(action: Action, given: ActionInput) -> LabelChange:
    answers = _answered(given.paths_of(action.get("images")), lambda *_: None, given)
    return LabelChange(f"clear {images_text(len(answers))}", answers)


def _toggle(action: Action, given: ActionInput) -> LabelChange:
    """Adds a label to the images, or removes it if all have it."""
    if not given.multi_label:
        raise OptionError("toggle: applies only to sessions with several labels per image.")
    name = class_name(action.get("label"), multi_label=True)
    paths, state = given.paths_of(action.get("images")), given.state
    if not all(path in state.answers and name in state.answers[path].labels for path in paths):
        return labelled(paths, name, _source(action, "grid"), given)
    source, time = _source(action, "grid"), now()

    def without(_path: str, before: Answer | None) -> Answer | None:
        rest = tuple(label for label in before.labels if label != name) if before is not None else ()
        return Answer("label", rest, source, time) if rest else None

    answers = _answered(paths, without, given)
    return LabelChange(f"remove {name} from {images_text(len(answers))}", answers)


def _rejected(paths: Iterable[str], name: str, state: LabelState) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    found = {}
    for path in paths:
        before = state.rejected.get(path, ())
        if name not in before:
            found[path] = before, (*before, name)
    return found


def _reject(action: Action, given: ActionInput) -> LabelChange:
    name = _existing(action.get("label"), given)
    rejected = _rejected(given.paths_of(action.get("images")), name, given.state)
    return LabelChange(f"reject {name} for {images_text(len(rejected))}", rejected=rejected)


def _confirm(action: Action, given: ActionInput) -> LabelChange:
    """Labels the ticked images and rejects the class for the others, in one step of undo."""
    name = _existing(action.get("label"), given)
    refused = given.paths_of(action.get("rejected", []))
    kept = [path for path in given.paths_of(action.get("images")) if path not in set(refused)]
    change = labelled(kept, name, _source(action, "confirm"), given)
    return replace(
        change,
        text=f"confirm {images_text(len(change.answers))} as {name}",
        rejected=_rejected(refused, name, given.state),
    )


def _add_class(action: Action, given: ActionInput) -> LabelChange:
    name = class_name(action.get("name"), multi_label=given.multi_label)
    if name in given.state.names:
        raise OptionError(f"There is already a class {name!r}.")
    return LabelChange(f"add class {name}", classes=given.state.added([name]))


def _rename_class(action: Action, given: ActionInput) -> LabelChange:
    name, new = _existing(action.get("name"), given), class_name(action.get("to"), multi_label=given.multi_label)
    if new in given.state.names:
        raise OptionError(f"There is already a class {new!r}; merge the two instead.")
    classes = tuple(LabelClass(new, e.key) if e.name == name else e for e in given.state.classes)
    return _replaced(f"rename class {name} to {new}", {name: new}, classes, given.state)


def _merge_class(action: Action, given: ActionInput) -> LabelChange:
    name, into = _existing(action.get("name"), given), _existing(action.get("into"), given)
    if name == into:
        raise OptionError("A class cannot be merged into itself.")
    classes = tuple(entry for entry in given.state.classes if entry.name != name)
    return _replaced(f"merge class {name} into {into}", {name: into}, classes, given.state)


def _delete_class(action: Action, given: ActionInput) -> LabelChange:
    name = _existing(action.get("name"), given)
    classes = tuple(entry for entry in given.state.classes if entry.name != name)
    return _replaced(f"delete class {name}", {name: None}, classes, given.state)


def _replaced(
    text: str, names: Mapping[str, str | None], classes: tuple[LabelClass, ...], state: LabelState
) -> LabelChange:
    """Other names of classes, in all labels and rejections; None for a class that is deleted."""

    def renamed(labels: Iterable[str]) -> tuple[str, ...]:
        found = (names.get(label, label) for label in labels)
        return tuple(dict.fromkeys(label for label in found if label is not None))

    answers: dict[str, tuple[Answer | None, Answer | None]] = {}
    for path, answer in state.answers.items():
        if any(label in names for label in answer.labels):
            labels = renamed(answer.labels)
            answers[path] = answer, replace(answer, labels=labels) if labels else None
    rejected = {
        path: (labels, renamed(labels)) for path, labels in state.rejected.items() if any(n in names for n in labels)
    }
    return LabelChange(text, answers, rejected, (state.classes, classes))


def _more_blind(action: Action, given: ActionInput) -> LabelChange:
    count = action.get("count", 20)
    if type(count) is not int or not 1 <= count <= 1000:
        raise OptionError("count: expected 1 to 1,000 images.")
    blind = given.enlarged(count)
    added = len(blind) - len(given.state.blind)
    return LabelChange(f"draw {images_text(added)} more for the test sample", blind=(given.state.blind, blind))


ACTIONS: Final[dict[str, Callable[[Action, ActionInput], LabelChange]]] = {
    "label": _label,
    "keep": _keep,
    "answer": _answer,
    "clear": _clear,
    "toggle": _toggle,
    "reject": _reject,
    "confirm": _confirm,
    "add class": _add_class,
    "rename class": _rename_class,
    "merge class": _merge_class,
    "delete class": _delete_class,
    "more blind": _more_blind,
}
"""Value of "do" -> the change that it makes."""
