"""``headstart predict`` and ``evaluate``: predictions of a model, and their scores."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headstart.cli.options import (
    SOURCE,
    Command,
    column_options,
    device_option,
    ignore_unknown_option,
    json_option,
    model_argument,
    open_source,
    option,
    out_option,
    shard_options,
    shard_settings,
    sharded,
)
from headstart.cli.process_settings import importing
from headstart.cli.render import print_json, print_results, print_shards, print_table, say
from headstart.figures import interval_text, percent_text

if TYPE_CHECKING:
    from headstart.evaluation.metrics import AnyScores
    from headstart.evaluation.predictions import Evaluated
    from headstart.model import Model
    from headstart.runtime.onnx_model import OnnxModel


@click.command("predict", cls=Command)
@model_argument
@click.argument("paths", metavar="IMAGES...", nargs=-1, required=True, type=SOURCE)
@out_option(
    "Write the predictions to this file (.csv, .json or .parquet), or to a file for each shard in this folder.",
    "auto (print them)",
)
@option(
    "--excel",
    is_flag=True,
    default_text="off",
    help="With --out NAME.csv: write a file that Excel opens correctly in any language.",
)
@option(
    "--top",
    type=click.IntRange(1),
    default=1,
    metavar="N",
    help="Number of most probable classes to list for each image.",
    default_text="1",
)
@shard_options
@device_option
@json_option()
def predict_command(
    run_or_model: Path,
    paths: tuple[str, ...],
    out: Path | None,
    excel: bool,
    top: int,
    device: str,
    as_json: bool,
    **shards: Any,
) -> None:
    """Classify images.

    MODEL is a run folder, a model file, hf://OWNER/NAME, or an exported ONNX file, which runs without PyTorch. IMAGES
    are files, folders, archives or tables, or their URLs. An image that cannot be read gets a row with the reason.

    With --out FOLDER, the images are computed in shards: one Parquet file for each, a folder of tables with images that
    cannot be read, and manifest.json at the end. The same command continues work that was stopped.
    """
    is_sharded = out is not None and sharded(out, shards, tuple(shards), (".csv", ".json", ".parquet"))
    if out is not None and is_sharded and not excel:
        _predict_shards(run_or_model, paths, out, top, device, as_json, shards)
        return
    if out is None and (given := [name for name, value in shards.items() if value is not None]):
        raise click.UsageError(f"--{given[0].replace('_', '-')}: writes a folder of shards: name it with --out FOLDER.")
    from headstart.evaluation.tables import TABLE_FORMATS
    from headstart.files import check_suffix
    from headstart.progress import TerminalProgress
    from headstart.runtime.command import show_predictions

    if out is not None:
        check_suffix(out, [".csv"] if excel else TABLE_FORMATS)
    elif excel:
        raise click.UsageError("--excel writes a file: name it with --out NAME.csv.")
    model = _load(run_or_model)
    predictions = model.predict(list(paths), top=top, device=device, progress=TerminalProgress())
    note = "" if model.is_calibrated else model.calibration_text
    if status := show_predictions(predictions, out=out, as_json=as_json, note=note, excel=excel):
        raise click.exceptions.Exit(status)


def _load(run_or_model: Path) -> Model | OnnxModel:
    """The model; an ONNX file without PyTorch."""
    from headstart.runtime.onnx_model import is_onnx

    if is_onnx(run_or_model):
        from headstart.loading import load_onnx

        return load_onnx(run_or_model)
    with importing():
        from headstart.model import load
    return load(run_or_model)


def _predict_shards(
    run_or_model: Path,
    paths: tuple[str, ...],
    out: Path,
    top: int,
    device: str,
    as_json: bool,
    shards: dict[str, Any],
) -> None:
    """Predicts images in shards; arguments as ``predict_command``."""
    from headstart.runtime.onnx_model import is_onnx

    if is_onnx(run_or_model):
        raise click.UsageError("an ONNX file writes one file of predictions: name it with --out NAME.csv.")
    with importing():
        from headstart.data.streamed_dataset import StreamedPaths
        from headstart.distributed.bulk import predict_shards
        from headstart.model import load
        from headstart.progress import TerminalProgress

    model, progress = load(run_or_model), TerminalProgress()
    found = predict_shards(
        model, StreamedPaths(paths), out, top=top, **shard_settings(shards, device), progress=progress
    )
    if not model.calibration.images:
        say(model.calibration_text)
    print_shards(found, as_json=as_json)
    if not found.num_rows:
        raise click.exceptions.Exit(1)


@click.command("evaluate", cls=Command)
@model_argument
@click.argument("data", required=False, type=SOURCE)
@out_option("Write every prediction to this .csv file.", "off")
@ignore_unknown_option
@device_option
@column_options
@json_option()
def evaluate_command(
    run_or_model: Path,
    data: str | None,
    out: Path | None,
    ignore_unknown: bool,
    device: str,
    as_json: bool,
    **columns: Any,
) -> None:
    """Score a model on labelled images: the val and test images of its run, or DATA.

    MODEL is a run folder, a model file, or hf://OWNER/NAME. DATA is a folder with one folder of images per class, a
    table, an archive or shards; a path or a URL.
    """
    with importing():
        from headstart.evaluation.predictions import predictions_csv
        from headstart.files import check_suffix, write_csv_file
        from headstart.progress import TerminalProgress
        from headstart.verbs.evaluate import evaluate

    if out is not None:
        check_suffix(out, [".csv"])
    source = open_source(data, columns, min_classes=2)
    evaluated = evaluate(
        run_or_model, source, ignore_unknown=ignore_unknown, device=device, progress=TerminalProgress()
    )
    if out is not None:
        write_csv_file(out, predictions_csv(evaluated))
    if as_json:
        print_json({part.scores.name: part.scores.as_json() | _groups_document(part) for part in evaluated})
        return
    print_results(part.scores for part in evaluated)
    for part in evaluated:
        print_table(*_class_table(part.scores))
        if part.by_group:
            print_table(*_group_table(part))


def _groups_document(part: Evaluated) -> dict[str, object]:
    return {} if part.groups is None else {"groups": [asdict(group) for group in part.by_group]}


def _class_table(scores: AnyScores) -> tuple[list[str], list[list[str]]]:
    """Header and rows."""
    from headstart.evaluation.metrics import LabelScores, class_figures, share_words

    header = ["precision", "recall", "F1", "support"]
    rows = [
        [c.label, *map(share_words, (c.precision, c.recall, c.f1)), f"{c.support:,}"] for c in class_figures(scores)
    ]
    if not isinstance(scores, LabelScores):
        return [f"{scores.name}: class", *header], rows
    more = [[percent_text(label.average_precision), f"{label.threshold:.2f}"] for label in scores.classes]
    header = [f"{scores.name}: label", *header, "average precision", "threshold"]
    return header, [[*row, *added] for row, added in zip(rows, more, strict=True)]


def _group_table(part: Evaluated) -> tuple[list[str], list[list[str]]]:
    """Header and rows."""
    rows = [
        [
            group.group or "no group",
            percent_text(group.correct / group.count),
            f"{group.correct:,}/{group.count:,}",
            interval_text(group.low, group.high),
        ]
        for group in part.by_group
    ]
    return [f"{part.scores.name}: group", "accuracy", "correct", "95 % CI"], rows
