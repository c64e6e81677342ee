"""What a page shows of a session: one item for each stack of images, in views such as "all" or "class:rose"."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from headstart.errors import OptionError
from headstart.labelling.image_list import ImageList
from headstart.labelling.label_state import Answer, LabelState
from headstart.labelling.learner import Learnt
from headstart.labelling.learning import DoubtedLabel
from headstart.labelling.stacks import Stacks


@dataclass(frozen=True)
class Shown:
    """What items are made of, at one time.

    Attributes:
        images: of the session.
        state: labels.
        stacks: None before they are known.
        learnt: probabilities; None before there are any.
    """

    images: ImageList
    state: LabelState
    stacks: Stacks | None
    learnt: Learnt | None

    def first_images(self) -> list[int]:
        """The first image of each stack."""
        count, stacks = len(self.images), self.stacks
        return list(range(count)) if stacks is None else stacks.first_images(count)

    def answer(self, image: int) -> Answer | None:
        """The answer for an image."""
        return self.state.answers.get(self.images.paths[image])

    def is_blind(self, image: int) -> bool:
        """Whether an image is in the blind sample."""
        return self.images.paths[image] in self.state.blind_set

    def suggestion(self, image: int) -> dict[str, Any] | None:
        """Predicted class and probability of an unlabelled image; None for one of the blind sample."""
        if self.learnt is None or self.is_blind(image) or self.answer(image) is not None:
            return None
        return self.learnt.suggestion(image, self.state.rejected.get(self.images.paths[image], ()), self.state.names)

    def with_suggestions(self, item: dict[str, Any], count: int = 5) -> dict[str, Any]:
        """The document of an image with ``suggestions``: its most probable classes."""
        image = int(item["id"])
        if self.learnt is None or self.is_blind(image):
            return item
        rejected = self.state.rejected.get(self.images.paths[image], ())
        return item | {"suggestions": self.learnt.suggestions(image, rejected, self.state.names, count)}

    def item(self, image: int, *, suggest: bool = True) -> dict[str, Any]:
        """The document of an image in a list."""
        answer = self.answer(image)
        label = None if answer is None else list(answer.labels) if answer.kind == "label" else answer.kind
        return {
            "id": image,
            "name": self.images.name(image),
            "stack": 1 if self.stacks is None else self.stacks.size(image),
            "label": label,
            "split": None if answer is None else self.state.split_of(self.images.paths[image]),
            "source": None if answer is None else answer.source,
            "suggestion": self.suggestion(image) if suggest else None,
        }

    def doubted(self, found: Iterable[DoubtedLabel]) -> list[dict[str, Any]]:
        """Documents of images with doubted labels: ``suggestion`` is what is more probable, ``by_run`` says by whom."""
        shown = []
        for one in found:
            suggestion = {"label": one.label, "probability": round(one.probability, 4)}
            item = self.with_suggestions(self.item(one.image))
            shown.append(item | {"suggestion": suggestion, "by_run": one.by_run})
        return shown

    def items(self, images: Iterable[int], *, suggest: bool = True) -> list[dict[str, Any]]:
        """Documents of images."""
        return [self.item(image, suggest=suggest) for image in images]


def images_of_view(view: str, shown: Shown) -> list[int]:
    """The images of a view other than "cluster:K", in order.

    Args:
        view: "all", "unlabelled", "labelled", "none", "unsure", "skip" or "class:NAME".
        shown: the session.

    Raises:
        OptionError: there is no such view.
    """
    first = shown.first_images()
    if view == "all":
        return first
    kind, _, name = view.partition(":")
    if kind == "class" and name:
        return [i for i in first if (a := shown.answer(i)) is not None and name in a.labels]
    if view == "unlabelled":
        return [i for i in first if shown.answer(i) is None]
    if view in ("labelled", "none", "unsure", "skip"):
        wanted = "label" if view == "labelled" else view
        return [i for i in first if (a := shown.answer(i)) is not None and a.kind == wanted]
    raise OptionError(
        f"view {view!r}: expected all, unlabelled, labelled, none, unsure, skip, class:NAME or cluster:K."
    )


def queue_document(label: str | None, total: int, items: list[dict[str, Any]]) -> dict[str, Any]:
    """A part of a queue.

    Args:
        label: class that is asked for; None for any.
        total: images of the queue.
        items: documents of the first ones.
    """
    return {"label": label, "total": total, "items": items}
