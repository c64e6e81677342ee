"""Step 2 of a run: every image is read once and checked, and the split is settled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from headstart.backbone.pixel_net import FeatureNet
from headstart.data.dataset import Dataset
from headstart.data.duplicates import connected_parts
from headstart.data.finding import Finding
from headstart.data.inspection import Inspection, by_severity, inspect, summary_lines
from headstart.data.pixel_cache import PixelReader
from headstart.data.preprocessing import Preprocessing
from headstart.data.scan import measure_value_range
from headstart.data.splits import SplitShares
from headstart.errors import DataError
from headstart.pipeline.load import Job, Loaded
from headstart.training.fit_head import check_classes
from headstart.training.losses import Parts, can_keep_together, count_learnable


@dataclass(frozen=True)
class Inspected:
    """The images of a run.

    Attributes:
        inspection: the data set, its findings and its split.
        positions: split -> positions of its images in the data set.
        keys: split -> content hashes of its images.
        files: content hash of every used image -> path.
    """

    inspection: Inspection
    positions: dict[str, list[int]]
    keys: dict[str, list[bytes]]
    files: dict[bytes, str]

    @property
    def dataset(self) -> Dataset:
        """The data set."""
        return self.inspection.dataset

    @property
    def held_out(self) -> list[str]:
        """The splits other than train."""
        return [name for name in self.keys if name != "train"]

    @property
    def num_images(self) -> int:
        """Images of all splits."""
        return sum(map(len, self.keys.values()))

    def parts(self, positions: Sequence[int]) -> Parts:
        """(N,) numbers of the parts that images fall into: no fold divides a group, or near copies of an image.

        Args:
            positions: of N images in the data set.
        """
        return connected_parts(positions, self.dataset.groups, self.inspection.duplicates)

    def with_files(self, files: dict[bytes, str]) -> Inspected:
        """The same images, with the files of other images whose features are computed."""
        return replace(self, files=self.files | files)

    def with_findings(self, found: Sequence[Finding]) -> Inspected:
        """The same images with more findings, most severe first."""
        inspection = self.inspection
        return replace(self, inspection=replace(inspection, findings=by_severity([*inspection.findings, *found])))


def with_value_range(job: Job, loaded: Loaded) -> Loaded:
    """Where the recipe asks for it, scales values by the range of the training images' values.

    Raises:
        DataError: no training image has more than 8 bits per channel.
    """
    if job.recipe.value_range != "data":
        return loaded
    inspection = run_inspection(job, None)
    bits, files = inspection.scanned.facts["bits"], inspection.dataset.files()
    deep = [i for i in inspection.split.positions("train") if bits[i] > 8]
    if not deep:
        raise DataError(
            f"{inspection.dataset.root}: no training image has more than 8 bits per channel, so value_range data has "
            "no effect. Leave the option out."
        )
    value_range = measure_value_range([files[i] for i in deep], progress=job.progress)
    backbone = replace(loaded.backbone, preprocessing=replace(loaded.backbone.preprocessing, value_range=value_range))
    low, high = (100 * share for share in value_range)
    job.progress.say(
        f"Value range: {low:.3g} % of the full scale is mapped to black and {high:.3g} % to white, measured on "
        f"{len(deep):,} training images of more than 8 bits per channel."
    )
    net = FeatureNet(backbone, loaded.net.spec)
    return replace(loaded, backbone=backbone, net=net)


def run_inspection(job: Job, preprocessing: Preprocessing | None) -> Inspection:
    """Checks every image and settles the split; with a preprocessing, pixels are in the cache afterwards.

    Raises:
        DataError: the data cannot be used.
    """
    return inspect(
        job.dataset,
        seed=job.recipe.seed,
        shares=SplitShares(job.recipe.val, job.recipe.test),
        preprocessing=preprocessing,
        cache=job.cache,
        progress=job.progress,
    )


def inspect_images(job: Job, loaded: Loaded, inspection: Inspection | None = None) -> Inspected:
    """Reads every image and settles the split.

    Args:
        job: see ``Job``.
        loaded: its preprocessing decides what pixels are cached.
        inspection: an earlier one with the same seed and shares.

    Raises:
        DataError: the images do not suffice to train and to score a classifier.
        OptionError: the recipe does not fit the number of classes.
    """
    inspection = inspection or run_inspection(job, loaded.backbone.preprocessing)
    require_learnable(inspection, least=job.recipe.min_classes)
    dataset = inspection.dataset
    check_classes(job.recipe, len(dataset.classes), multi_label=dataset.multi_label)
    return inspected_images(inspection)


def inspected_images(inspection: Inspection) -> Inspected:
    """The images of every split of an inspection."""
    scanned, files = inspection.scanned, inspection.dataset.files()
    positions = {name: inspection.split.positions(name) for name in inspection.split.names}
    keys = {name: [scanned.keys[i] for i in places] for name, places in positions.items()}
    used = {scanned.keys[i]: files[i] for places in positions.values() for i in places}
    return Inspected(inspection, positions, keys, used)


def pixel_reader(job: Job, loaded: Loaded, inspected: Inspected) -> PixelReader:
    """Reads preprocessed pixels of the run's images by content hash."""
    return PixelReader(loaded.backbone.preprocessing, inspected.files, cache=job.cache, progress=job.progress)


def report_images(job: Job, inspected: Inspected, *, num_old_classes: int = 0) -> None:
    """Says how many images and classes there are, and the most severe findings.

    Args:
        job: see ``Job``.
        inspected: the images.
        num_old_classes: of the model that is extended.
    """
    inspection, dataset = inspected.inspection, inspected.dataset
    sizes = ", ".join(f"{name} {count:,}" for name, count in inspection.split.sizes.items())
    new = len(dataset.classes) - num_old_classes
    what = f"{new:,} class{'es' if new > 1 else ''}"
    if num_old_classes:
        what = f"{new:,} new class{'es' if new > 1 else ''} after {num_old_classes:,} old ones"
    if dataset.multi_label:
        each = dataset.labels[inspection.scanned.usable].sum(axis=1).mean()
        what = f"{new:,} label{'s' if new > 1 else ''}, {each:.1f} per image on average"
    job.progress.say(f"{dataset.root}: {what}; images: {sizes} (split {inspection.split.origin}).")
    for line in summary_lines(inspection.findings):
        job.progress.say(line)
    labels, parts = dataset.labels[inspected.positions["train"]], inspected.parts(inspected.positions["train"])
    has_parts = len(set(parts.tolist())) < len(parts)
    if has_parts and not num_old_classes and not can_keep_together(labels, parts):
        job.progress.say(
            "Warning: each class has training images of one group only (or near copies of one image), so "
            "cross-validation has to divide groups, and its scores are too high. Add images of other groups."
        )


def require_learnable(inspection: Inspection, *, least: int) -> None:
    """Checks that there are classes to tell apart and images to score on.

    Args:
        inspection: of the data.
        least: classes that training needs.

    Raises:
        DataError: what is missing, and what to add.
    """
    root, usable = inspection.dataset.root, int(inspection.scanned.usable.sum())
    if usable > 1 and inspection.num_distinct_images() == 1:
        raise DataError(
            f"{root}: all {usable:,} files show the same image (identical or nearly so), so nothing can be learned. "
            "Add different images."
        )
    learnable = [label for label, count in inspection.counts().get("train", {}).items() if count]
    if inspection.dataset.multi_label:
        labels = inspection.dataset.labels[inspection.split.positions("train")]
        if not count_learnable(labels):
            raise DataError(
                f"{root}: {len(labels):,} training image(s), and every label applies to every image or to none, so "
                "nothing can be learned. Add images, or choose smaller shares for val and test."
            )
    elif len(learnable) < least:
        raise DataError(
            f"{root}: training images of {len(learnable)} class(es) only; a classifier needs {least}. Add images, or "
            "choose smaller shares for val and test."
        )
    if not inspection.split.sizes.keys() & {"val", "test"}:
        raise DataError(
            f"{root}: no image is left to score the classifier on ({len(inspection.dataset)} in all). Add images, or "
            "choose a larger share for val."
        )
