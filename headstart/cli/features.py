"""``headstart extract`` and ``layers``: features of images, and the backbones that compute them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headstart.cli.options import (
    FILE,
    Command,
    checked_options,
    chosen_columns,
    column_options,
    data_argument,
    device_option,
    json_option,
    open_source,
    option,
    out_option,
    recipe_options,
    shard_options,
    shard_settings,
    sharded,
)
from headstart.cli.process_settings import importing
from headstart.cli.render import print_json, print_results, print_shards, print_table, say
from headstart.files import printable
from headstart.training.recipe import LORA_RANK

if TYPE_CHECKING:
    from headstart.backbone.layers import LayerGroup
    from headstart.backbone.split import SplittableBackbone


@click.command("extract", cls=Command)
@data_argument
@out_option(
    "File to write (.npz or .parquet), or a folder, which gets one file for each shard of the images.", required=True
)
@recipe_options("backbone", "weights", "accept_license", "image_size", "fit", "pool", "cut", first=True)
@option(
    "--dtype",
    type=click.Choice(["float16", "float32"]),
    help="With --out FOLDER: number format of the features.",
    default_text="float16",
)
@shard_options
@device_option
@column_options
@json_option()
def extract_command(data: str, out: Path, device: str, as_json: bool, **options: Any) -> None:
    """Write the backbone's features of every image to a file, with path and label, for use in other tools.

    DATA is a folder with one folder of images per class, a table, an archive or shards; a path or a URL.

    With --out FOLDER, the images are computed in shards: one Parquet file for each, a folder of tables with images that
    cannot be read, and manifest.json at the end. The same command continues work that was stopped.
    """
    chosen = checked_options(options)
    is_sharded = sharded(out, options, ("workers", "ray", "shard_size", "part", "dtype"), (".npz", ".parquet"))
    with importing():
        from headstart.features.export import export_features, feature_net
        from headstart.progress import TerminalProgress

    progress, network = TerminalProgress(), _network_options(chosen)
    if is_sharded:
        with importing():
            from headstart.data.streamed_dataset import StreamedDataset
            from headstart.distributed.bulk import extract_shards

        shown = extract_shards(
            feature_net(**network, progress=progress),
            StreamedDataset(data, chosen_columns(options)),
            out,
            dtype=options["dtype"] or "float16",
            **shard_settings(options, device),
            progress=progress,
        )
        print_shards(shown, as_json=as_json)
        return
    source = open_source(data, options, min_classes=2)
    count, length = export_features(source, out, **network, device=device, progress=progress)
    if as_json:
        print_json({"file": str(out), "images": count, "features": length})
    else:
        print(f"{out}: {count:,} images, {length:,} features each")


def _network_options(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``feature_net`` among recipe options."""
    named = {name: chosen[name] or "" for name in ("backbone", "cut")}
    return named | {name: chosen[name] for name in ("weights", "image_size", "fit", "pool", "accept_license")}


@click.command("fit", cls=Command)
@click.argument("features", type=FILE)
@out_option("Model file to write (.safetensors).", required=True)
@recipe_options("backbone", "weights", "accept_license", "image_size", "fit", "pool", "cut", first=True)
@recipe_options("seed", "val", "test", "target_accuracy", first=True)
@option(
    "--check",
    type=click.IntRange(0),
    default=20_000,
    metavar="N",
    help="Maximum number of images whose labels are checked. Their features are held in memory; 0: no check.",
    default_text="20000",
)
@json_option()
def fit_command(features: Path, out: Path, check: int, as_json: bool, **options: Any) -> None:
    """Fit a linear classifier to features in shards, which stay on disk, so that there can be any number of images.

    FEATURES is a folder that headstart extract wrote; give the same network options again. The model file can be used
    like that of a run: predict, evaluate, export, serve. Probable label errors, outliers and files with equal bytes are
    written beside it, to NAME.findings.json.
    """
    chosen = checked_options(options)
    with importing():
        from headstart.distributed.fit_probe import fit_probe_on_shards
        from headstart.distributed.sharded_features import open_sharded_features
        from headstart.features.export import feature_net
        from headstart.files import check_suffix, output_file
        from headstart.progress import TerminalProgress
        from headstart.runs.folder import write_findings
        from headstart.training.recipe import Recipe

    file, progress = check_suffix(out, (".safetensors",)), TerminalProgress()
    sharded = open_sharded_features(features)
    net = feature_net(**_network_options(chosen), progress=progress)
    recipe = Recipe(effort="probe", **chosen)
    found = fit_probe_on_shards(sharded, net, recipe=recipe, most_checked=check, progress=progress)
    found.model.save(file)
    findings = file.with_suffix(".findings.json")
    with output_file(findings, (".json",)) as place:
        write_findings(place, found.findings)
    say(f"Fitted a linear classifier to {len(sharded):,} images: {found.reason}.")
    say(found.model.calibration_text)
    if as_json:
        scores = {part.scores.name: part.scores.as_json() for part in found.evaluated}
        print_json({"model": str(file), "findings": str(findings), "scores": scores})
        return
    print_results(part.scores for part in found.evaluated)
    for finding in found.findings:
        print(printable(finding.line))
    print(f"Findings: {findings}\nModel: {file}")


@click.command("layers", cls=Command)
@click.argument("backbone")
@recipe_options("image_size", first=True)
@option(
    "--classes",
    type=click.IntRange(0),
    default=1000,
    metavar="N",
    help="Number of classifier outputs; 0: no classifier.",
    default_text="1000",
)
@option(
    "--unfreeze",
    multiple=True,
    metavar="LAYER",
    help="Layer to count as trainable; may be repeated.",
    default_text="auto (only the classifier)",
)
@json_option()
def layers_command(
    backbone: str, image_size: int | None, classes: int, unfreeze: tuple[str, ...], as_json: bool
) -> None:
    """List the layer groups of a backbone in execution order, and the boundaries where it can be split.

    BACKBONE is a timm architecture, for example resnet50. The size of a boundary's activation is given in half
    precision; its cost is the fraction of the forward pass before it; the weights after it exclude the classifier.
    The last three columns are the weights that are trained with --tune full, bias-norm and lora.
    The operations for an image are those of the backbone without the classifier.
    """
    chosen = checked_options({"image_size": image_size})
    with importing():
        from headstart.backbone.compute_cost import compute_cost
        from headstart.backbone.layers import freeze, layer_groups
        from headstart.backbone.names import default_image_size, resolve_architecture
        from headstart.backbone.split import SplittableBackbone
        from headstart.backbone.weights import build_architecture, classifier_names, preprocessing_of
        from headstart.training.tuning import Tuning, trained_by_boundary

    backbone = resolve_architecture(backbone)
    size: int | None = chosen["image_size"] or default_image_size(backbone)
    module = build_architecture(backbone, image_size=size, classes=classes)
    freeze(module, trainable=unfreeze or (classifier_names(module) if classes else ()))
    expected = preprocessing_of(module, size)
    groups = layer_groups(module, input_shape=(3, expected.height, expected.width))
    headless = build_architecture(backbone, image_size=size)
    split = SplittableBackbone(headless, height=expected.height, width=expected.width)
    tunings = (Tuning(), Tuning("bias-norm"), Tuning("lora"))
    trained = {str(tuning.method): trained_by_boundary(split, tuning) for tuning in tunings}
    is_square = expected.height == expected.width
    gmacs = compute_cost(backbone, expected.height).gmacs if is_square else None
    if as_json:
        print_json(_document(backbone, groups, split, trained) | {"gmacs": gmacs})
        return
    cost = "" if gmacs is None else f": {gmacs:.3g} billion multiply-accumulate operations (GMACs) for an image"
    print(f"{backbone}, images of {expected.height} x {expected.width} pixels{cost}")
    _print_groups(groups)
    _print_boundaries(split, trained)


_Trained = dict[str, dict[str, int]]
"""Method of tuning -> boundary -> number of weights that are trained after it."""


def _document(
    backbone: str, groups: list[LayerGroup], split: SplittableBackbone, trained: _Trained
) -> dict[str, object]:
    return {
        "backbone": backbone,
        "groups": [asdict(group) for group in groups],
        "parameters": sum(group.parameters for group in groups),
        "trainable": sum(group.trainable for group in groups),
        "statistics": sum(group.statistics for group in groups),
        "boundaries": [
            asdict(boundary) | {"trained": {method: counts[boundary.name] for method, counts in trained.items()}}
            for boundary in split.boundaries
        ],
        "obstacle": split.obstacle,
    }


def _print_groups(groups: list[LayerGroup]) -> None:
    rows = [
        [
            group.name,
            group.kind,
            " x ".join(map(str, group.output_shape)) or "-",
            f"{group.parameters:,}",
            _trainable_text(group.parameters, group.trainable),
        ]
        for group in groups
    ]
    total, trainable = sum(group.parameters for group in groups), sum(group.trainable for group in groups)
    print_table(["layer group", "kind", "output", "weights", "trainable"], rows)
    print(f"Weights: {total:,}, {trainable:,} trainable and {total - trainable:,} frozen.")
    print(f"BatchNorm statistics, not updated by gradients: {sum(group.statistics for group in groups):,}.\n")


def _trainable_text(parameters: int, trainable: int) -> str:
    if not parameters:
        return "-"
    return "yes" if trainable == parameters else "no" if not trainable else f"{trainable:,}"


def _print_boundaries(split: SplittableBackbone, trained: _Trained) -> None:
    rows = [
        [
            boundary.name,
            " x ".join(map(str, boundary.shape)),
            f"{boundary.bytes_per_image:,}",
            f"{100 * boundary.cost_before:.0f} %",
            *(f"{counts[boundary.name]:,}" for counts in trained.values()),
        ]
        for boundary in split.boundaries
    ]
    methods = ["weights after it", "biases and norms", f"LoRA, rank {LORA_RANK}"]
    print_table(["boundary after", "activation", "bytes per image", "cost before", *methods], rows)
    if split.obstacle:
        print(f"The only freeze boundary is before the head: {split.obstacle}.")
