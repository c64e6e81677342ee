"""Custom training loops: the steps of a run up to the fitted head, and what a loop needs from there on.

What is frozen has been computed when the loop begins: its batches are activations at the freeze boundary, its
classifier is the rest of the network, with the head that was fitted on frozen features.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Unpack, final

import torch
from torch import Tensor

from headstart.data.dataset import Dataset, open_data
from headstart.data.preprocessing import Preprocessing
from headstart.errors import OptionError, first_line
from headstart.evaluation.metrics import AnyScores
from headstart.evaluation.predictions import evaluate_predictions
from headstart.model import Model
from headstart.pipeline.choose_layers import choose_and_fit
from headstart.pipeline.evaluate import TrainedClassifier, evaluate
from headstart.pipeline.featurise import featurise
from headstart.pipeline.fit import Prepared
from headstart.pipeline.inspect_images import inspect_images, report_images, with_value_range
from headstart.pipeline.load import Job, load
from headstart.pipeline.plan import measure, plan
from headstart.pipeline.rung_activations import RungActivations, RungInputs
from headstart.progress import Progress, SilentProgress
from headstart.training.custom_heads import describe
from headstart.training.frozen_proof import digests_of, require_unchanged, tensors_of
from headstart.training.losses import is_multi_label, probabilities_of
from headstart.training.recipe import Recipe
from headstart.training.recipe_options import RecipeOptions
from headstart.training.sampling import epoch_order
from headstart.training.suffix_classifier import SuffixClassifier
from headstart.training.suffix_evaluation import logits_of
from headstart.training.tuning import trained_names
from headstart.trust.thresholds import best_thresholds


def prepare(
    source: str | os.PathLike[str] | Dataset,
    *,
    recipe: Recipe | None = None,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
    **options: Unpack[RecipeOptions],
) -> Workbench:
    """Runs every step up to the fitted head, for a custom training loop.

    A custom head is set before the loop, ``bench.classifier.head = torch.nn.Sequential(...)``. It has to be composed of
    PyTorch's own layers, which a model file can restore (see ``training.custom_heads``).

    Args:
        source: a folder, a table, or a data set that is open already.
        recipe: every option at once; what concerns the steps themselves (learning rate, CutMix, smoothing, ...) is left
            to the loop.
        device: where the frozen part runs: "auto", "cpu", "cuda" or "mps". The loop's own part is on the CPU.
        cache: the cache folder; the default one if None.
        progress: receives messages and the progress of each task.
        **options: fields of ``Recipe``, instead of ``recipe``; the effort is "quick" unless given.

    Raises:
        DataError: the data cannot be used; the message says what was found.
        WeightsError: the weights of the backbone cannot be loaded.
        LicenseError: the licence of the weights is restricted, and was not accepted.
        OptionError: an option is invalid, or leaves nothing to train.

    Examples:
        >>> import torch
        >>> bench = hs.prepare("flowers/", unfreeze="blocks.6", views=2)
        >>> optimizer = torch.optim.AdamW(bench.classifier.trainable_parameters(), lr=1e-3)
        >>> for epoch in range(2):
        ...     for x, labels in bench.batches("train", epoch=epoch):
        ...         optimizer.zero_grad()
        ...         torch.nn.functional.cross_entropy(bench.classifier(x), labels).backward()
        ...         optimizer.step()
        >>> file = bench.model().save("flowers.safetensors")
    """
    recipe = Recipe.of(recipe, options if recipe else {"effort": "quick", **options})
    job = Job(open_data(source), recipe, device, cache, progress or SilentProgress())
    loaded = load(job)
    loaded = with_value_range(job, loaded)
    inspected = inspect_images(job, loaded)
    report_images(job, inspected)
    measured = measure(job, loaded, inspected)
    planned = plan(job, loaded, inspected, measured)
    if not planned.rungs:
        raise OptionError(
            f"effort {recipe.effort!r} of {loaded.backbone.architecture}: no backbone layers would be trained. "
            "Choose another effort, or a backbone with freeze boundaries (see headstart layers)."
        )
    featurised = featurise(job, loaded, inspected, planned)
    return Workbench(choose_and_fit(job, loaded, inspected, planned, featurised))


@final
class Workbench:
    """What a custom training loop needs.

    Args:
        prepared: a run up to the fitted head, with a rung; the deepest one is taken.

    Attributes:
        classifier: activation -> logits; trained by the loop.
        classes: names, in the order of the logits.
        boundary: name of the freeze boundary.
        views: augmented views of each training image, which follow each other from epoch to epoch.
        preprocessing: how an image becomes the network's input.
    """

    def __init__(self, prepared: Prepared) -> None:
        prepared = prepared.for_rungs
        splittable = prepared.loaded.splittable
        assert splittable is not None
        self._prepared = prepared
        rung = prepared.planned.rungs[-1]
        activations = RungActivations(RungInputs.of(prepared), splittable, prepared.job.progress)
        self._train, self._val = activations.train_and_val(rung)
        self._split = splittable.copied()
        self._split.module.cpu()
        self.classes: tuple[str, ...] = prepared.inspected.dataset.classes
        self.boundary, self.views = rung.boundary.name, rung.views
        self.preprocessing: Preprocessing = prepared.loaded.backbone.preprocessing
        self.classifier = SuffixClassifier(
            self._split,
            self.boundary,
            copy.deepcopy(prepared.fitted.head),
            dtype=prepared.planned.engines.training_dtype,
            tuning=rung.settings.tuning,
            seed=prepared.job.recipe.seed,
        )
        self._trained = trained_names(self._split, self.boundary, rung.settings.tuning)
        counts = {id(norm.num_batches_tracked) for norm in self.classifier.norms}  # of batches, where norms learn
        self._trained += [name for name, buffer in self._split.module.named_buffers() if id(buffer) in counts]
        self._frozen = digests_of(tensors_of(self._split.module), without=self._trained)

    def __repr__(self) -> str:
        weights = sum(p.numel() for p in self.classifier.trainable_parameters())
        return f"Workbench({len(self.classes)} classes, {weights:,} weights to train after {self.boundary})"

    def batches(self, split: str = "train", *, epoch: int = 0, batch_size: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields batches of activations and labels.

        Args:
            split: "train": shuffled in each epoch, each image in its augmented view of that epoch; "val": in order,
                without augmentation.
            epoch: number of the epoch, from 0.
            batch_size: number of images of each batch except the last.

        Yields:
            (N, *shape) float32 activations and (N,) int64 labels for ``cross_entropy``; for multi-label data (N,
            classes) float32 labels of 0 and 1 for ``binary_cross_entropy_with_logits``.

        Raises:
            OptionError: unknown split; or the head does not fit the classifier, or cannot be stored in a model file.
        """
        self._check_head()
        if split not in ("train", "val") or (split == "val" and self._val is None):
            raise OptionError(f"no batches of {split!r}: the splits are train{' and val' if self._val else ''}.")
        samples = self._train if split == "train" or self._val is None else self._val
        count = len(samples.labels)
        order = epoch_order(self._prepared.job.recipe.seed, epoch, count).tolist() if split == "train" else range(count)
        for start in range(0, count, batch_size):
            images = list(order[start : start + batch_size])
            labels = torch.from_numpy(samples.labels[images])
            multi_label = is_multi_label(samples.labels)
            yield samples.activations.read(samples.rows(images, epoch)), labels.float() if multi_label else labels

    def _check_head(self) -> None:
        """Refuses a custom head that cannot be saved before it is trained, and not when it is to be saved."""
        head = self.classifier.head
        if hasattr(head, "about"):
            return
        describe(head)
        features = torch.from_numpy(self._prepared.featurised.train.features[:1])
        try:
            with torch.no_grad():
                shape = tuple(copy.deepcopy(head).eval()(features).shape)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise OptionError(
                f"head: does not accept features of shape {tuple(features.shape[1:])} ({first_line(error)})."
            ) from error
        if shape != (1, len(self.classes)):
            raise OptionError(
                f"head: the output per image has shape {shape[1:]}; expected one output for each of the "
                f"{len(self.classes)} classes."
            )

    def scores(self) -> AnyScores:
        """Scores of the current classifier on the validation images, in float32.

        Raises:
            OptionError: there are none.
        """
        val = self._prepared.featurised.val
        if self._val is None or val is None:
            raise OptionError("scores: the data has no validation images. Choose val_share above 0.")
        with self.classifier.merged():
            logits = logits_of(self._split, self.boundary, self._val, self.classifier.head.eval())
        files, labels = list(val.images.files), self._val.labels
        multi_label = is_multi_label(labels)
        probabilities = probabilities_of(logits, multi_label=multi_label)
        thresholds = best_thresholds(probabilities, labels).tolist() if multi_label else None
        return evaluate_predictions(
            "val", files, labels, probabilities, self.classes, thresholds=thresholds, chose=True
        ).scores

    def model(self) -> Model:
        """The current classifier with the frozen part: a model to save and predict with, scored on val and test.

        Low-rank updates are merged into the model's weights; the classifier can be trained on.

        Raises:
            TrainingError: the loop changed a weight, or a BatchNorm statistic, that is frozen.
        """
        after = digests_of(tensors_of(self._split.module), without=self._trained)
        require_unchanged(self._frozen, after, where="the training loop")
        with self.classifier.merged():
            module = copy.deepcopy(self._split.module).requires_grad_(False)
        backbone = self._prepared.loaded.backbone.fine_tuned(module, self.boundary)
        trained = TrainedClassifier(backbone, copy.deepcopy(self.classifier.head))
        return evaluate(self._prepared, trained).model
