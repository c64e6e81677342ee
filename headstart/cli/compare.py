"""``headstart compare``: training methods on the same data, or two models on the same images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headstart.cli.options import (
    SOURCE,
    Command,
    checked_options,
    column_options,
    device_option,
    ignore_unknown_option,
    json_option,
    open_source,
    option,
    out_option,
    recipe_options,
)
from headstart.cli.process_settings import importing
from headstart.cli.render import print_json, print_table
from headstart.figures import interval_text, percent_text

if TYPE_CHECKING:
    from headstart.data.dataset import Dataset
    from headstart.verbs.compare import Comparison

METHODS = "probes,heads,depths,batchnorm,weights"
"""Groups of methods, separated by commas."""


@click.command("compare", cls=Command)
@click.argument("paths", metavar="DATA | MODEL_A MODEL_B DATA", nargs=-1, required=True, type=SOURCE)
@out_option("Folder for the comparison; with two models, a .csv file.", "auto (runs/NAME)", "PATH")
@option(
    "--only",
    default=METHODS,
    metavar="GROUPS",
    help="Groups of methods to compare, separated by commas; or backbones alone, to find the one that suits the images "
    "best.",
    default_text=METHODS,
)
@option(
    "--candidates",
    default="offline",
    metavar="NAMES",
    default_text="offline",
    help="Backbones that --only backbones compares, separated by commas: offline (installed), cached (in timm's "
    "cache), recommended, a name, or NAME=FILE.",
)
@option(
    "--seconds",
    type=click.FloatRange(0),
    default=60.0,
    metavar="N",
    default_text="60",
    help="Approximate training time for each fine-tuning method, in seconds.",
)
@ignore_unknown_option
@device_option
@recipe_options("backbone", "weights", "accept_license", "image_size", "fit", first=False)
@recipe_options("balance_classes", "flip", "val", "test", "seed", first=False)
@column_options
@json_option(group="output")
def compare_command(
    paths: tuple[str, ...],
    out: Path | None,
    only: str,
    candidates: str,
    seconds: float,
    ignore_unknown: bool,
    device: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare training methods on the same data, or two trained models on the same images.

    With DATA alone: trains with each method, and writes a table and a chart of accuracy and time.

    With MODEL_A MODEL_B DATA: counts the images that only one of the two classifies correctly, and tests whether the
    difference is significant (McNemar's test); --out lists these images. Each model is a run folder or a model
    file. Only --out, --ignore-unknown, --device, --json and the table column options apply.
    """
    if len(paths) not in (1, 3):
        raise click.UsageError("expected DATA, or MODEL_A MODEL_B DATA.")
    chosen = checked_options(options)
    source = open_source(paths[-1], options, min_classes=2)
    if len(paths) == 3:
        _compare_models(paths[0], paths[1], source, out, ignore_unknown=ignore_unknown, device=device, as_json=as_json)
        return
    with importing():
        from headstart.progress import TerminalProgress
        from headstart.verbs.compare import compare

    found = compare(
        source,
        out=out,
        only=[name.strip() for name in only.split(",") if name.strip()],
        candidates=candidates,
        seconds=seconds,
        device=device,
        progress=TerminalProgress(),
        **chosen,
    )
    if as_json:
        print_json({"folder": str(found.folder), "scored_on": found.name, "rows": [asdict(row) for row in found.rows]})
    else:
        _print(found)


def _print(found: Comparison) -> None:
    rows = [
        [
            row.name,
            percent_text(row.accuracy),
            f"{row.correct:,}/{row.count:,}",
            interval_text(row.low, row.high),
            f"{row.log_loss:.3f}",
            f"{row.seconds:.0f}",
        ]
        for row in found.rows
    ]
    print_table(["method", "accuracy", "correct", "95 % CI", "log loss", "seconds"], rows)
    files = ", ".join(str(found.folder / f"comparison.{ending}") for ending in ("md", "json", "svg"))
    print(f"Scored on {found.name}. Written: {files}")


def _compare_models(
    first: str,
    second: str,
    data: str | Dataset,
    out: Path | None,
    *,
    ignore_unknown: bool,
    device: str,
    as_json: bool,
) -> None:
    with importing():
        from headstart.files import check_suffix, write_csv_file
        from headstart.progress import TerminalProgress
        from headstart.verbs.compare_models import compare_models

    if out is not None:
        check_suffix(out, [".csv"])
    found = compare_models(
        first, second, data, ignore_unknown=ignore_unknown, device=device, progress=TerminalProgress()
    )
    if out is not None:
        write_csv_file(out, found.csv())
    if as_json:
        print_json([result.as_json() for result in found.results])
        return
    for result in found.results:
        print(f"{result.sentence}.")
    if out is not None:
        print(f"{out}: the {len(found.differing):,} images that the two models classify differently")
