"""Parts of the state document of a session: counts of labels, and the state of its classifier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from headstart.data.sources.addresses import name_of, parent_of
from headstart.labelling.image_list import ImageList
from headstart.labelling.knowledge import accuracy_document
from headstart.labelling.label_state import KINDS, Answer, LabelState
from headstart.labelling.learner import LearnerState
from headstart.labelling.learning import SessionLearning

MOST_FOLDERS: Final = 100
"""Folders that may be classes, at most; more are dates or cameras."""


def folders_of(addresses: Sequence[str], state: LabelState) -> list[str]:
    """Names of the folders that the images are in, while nothing is labelled: they may be their classes.

    Returns:
        Ascending; none if there is a class, a single folder, or more than ``MOST_FOLDERS``.
    """
    if state.classes or state.answers:
        return []
    parents = {parent_of(address) for address in addresses}
    if len(parents) > MOST_FOLDERS:
        return []
    inner = [one for one in parents if not any(other.startswith((f"{one}/", f"{one}\\")) for other in parents)]
    names = {name_of(folder) for folder in inner}
    return sorted(names) if len(names) > 1 else []


def counts_of(state: LabelState, suggested: Mapping[str, int], images: ImageList | None) -> dict[str, Any]:
    """``labelled``, ``answers`` and ``classes`` of the images, and ``missing``: labels of what is no image any more.

    Args:
        state: the labels.
        suggested: class -> number of images suggested for it.
        images: of the session; None while they are listed: every label then counts as one of an image.
    """
    answers, missing = list[Answer](), list[str]()
    for path, answer in state.answers.items():
        if images is None or images.number_of(path) is not None:
            answers.append(answer)
        elif answer.labels:
            missing.append(path)
    kinds = Counter(answer.kind for answer in answers)
    labelled = Counter(name for answer in answers for name in answer.labels)
    return {
        "missing": {"count": len(missing), "first": missing[0] if missing else None},
        "labelled": kinds["label"],
        "answers": {kind: kinds[kind] for kind in KINDS if kind != "label"},
        "classes": [
            {"name": e.name, "key": e.key, "labelled": labelled[e.name], "suggested": suggested.get(e.name, 0)}
            for e in state.classes
        ],
    }


def learning_state(learning: SessionLearning | None) -> dict[str, Any]:
    """``learner``, ``blind`` and ``accuracy``; without learning, what they are before the pass is ready."""
    learnt = None if learning is None else learning.learnt
    busy: LearnerState = "fitting" if learning is not None and learning.learner.is_busy else "ready"
    left, done = ([], []) if learning is None else learning.blind_images()
    return {
        "learner": {
            "state": "too few labels" if learnt is None else busy,
            "labels": 0 if learnt is None else learnt.labels,
            "seconds": None if learnt is None else learnt.seconds,
        },
        "blind": {"wanted": len(left) + len(done), "labelled": len(done)},
        "accuracy": None if learning is None else accuracy_document(*learning.blind_result()),
    }
