"""``headstart train``, ``retrain`` and ``demo``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from headstart.cli.options import (
    FILE,
    PORT,
    SOURCE,
    Command,
    checked_options,
    column_options,
    device_option,
    json_option,
    open_source,
    option,
    out_option,
    ray_option,
    recipe_options,
    run_argument,
    workers_option,
)
from headstart.cli.process_settings import importing
from headstart.cli.render import print_json, print_results, print_run_files, run_files, say
from headstart.files import printable
from headstart.training.recipe import defaults, options_of

if TYPE_CHECKING:
    from headstart.runs.folder import Run

GO_WITH_RESUME = ("resume", "as_json", "watch", "watch_port", "workers", "ray")
"""Parameters of ``headstart train`` that can be combined with --resume."""

HOW = ("minutes", "candidates", "max_cost", "plan", "device", "workers", "ray")
"""Parameters that are arguments of ``pipeline.train.train`` and not part of the recipe."""

FIRST = tuple(name for name, declared in options_of().items() if declared.is_basic)
"""Recipe options that the help lists first."""


@click.command("train", cls=Command)
@click.argument("data", type=SOURCE, required=False)
@out_option("New or empty folder for the run.", "auto (runs/NAME)", "FOLDER")
@option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    metavar="M",
    default_text="auto (5; no limit if an option such as --effort, --backbone or --unfreeze is given)",
    help="Minutes for the whole run, report included. Backbone, image size and effort are chosen to fit into them.",
)
@recipe_options(*FIRST)
@device_option
@option("--watch", is_flag=True, help="Show the run on a page while it trains, in the browser.", default_text="off")
@option(
    "--resume",
    type=FILE,
    metavar="RUN",
    default_text="off",
    help="Continue this interrupted run with its original data and options. Can be combined only with --json, "
    "--watch, --watch-port, --workers and --ray.",
)
@recipe_options(*(name for name in options_of() if name not in FIRST))
@option(
    "--candidates",
    default="offline",
    metavar="NAMES",
    default_text="offline",
    group="features",
    help="Backbones to choose from with --minutes, separated by commas: offline (installed), cached (in timm's "
    "cache), recommended, a name, or NAME=FILE.",
)
@option(
    "--max-cost",
    type=click.FloatRange(1),
    default=2.0,
    metavar="X",
    default_text="2",
    group="features",
    help="With --minutes: maximum computation per image for larger images and for several backbones, as a multiple of "
    "that of one backbone.",
)
@option(
    "--plan",
    type=FILE,
    metavar="FILE",
    default_text="off",
    group="features",
    help="Train with the choices of an earlier run with --minutes, without a time limit: its plan.json or folder.",
)
@workers_option(
    "Number of processes that fine-tune together. Each batch is divided among them, so results differ by rounding "
    "only. Can be changed with --resume.",
    group="fine-tuning",
)
@ray_option("Fine-tune on the Ray cluster", group="fine-tuning")
@column_options
@option(
    "--watch-port",
    type=PORT,
    default=0,
    metavar="PORT",
    group="output",
    default_text="auto (any free port)",
    help="Port of the --watch page on this machine; implies --watch.",
)
@json_option(group="output")
@click.pass_context
def train_command(
    context: click.Context,
    /,
    data: str | None,
    out: Path | None,
    resume: Path | None,
    watch: bool,
    watch_port: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a classifier on labelled images.

    DATA is a folder with one folder of images per class; a CSV, TSV or Parquet table with a column of images or their
    paths and one of labels; an archive, or shards: a path, a pattern or a URL such as s3://BUCKET/FOLDER. Model,
    scores, predictions and report are written into a run folder.
    """
    _check_data(context, data, resume)
    how = {name: options.pop(name) for name in HOW}
    chosen = checked_options(options)
    with importing():
        from headstart.files import user_path
        from headstart.pipeline.resume import resume as resume_run
        from headstart.pipeline.train import train
        from headstart.progress import TerminalProgress
        from headstart.runs.folder import choose_run_folder
        from headstart.training.recipe import Recipe

    is_watched, folder = watch or watch_port > 0, user_path(resume) if resume is not None else out
    if data is not None and is_watched:
        folder = choose_run_folder(out, data)
    with _watched(folder if is_watched else None, watch_port):
        if data is None or resume is not None:
            run = resume_run(resume or "", progress=TerminalProgress(), workers=how["workers"], ray=how["ray"])
        else:
            recipe = Recipe(**chosen)
            source = open_source(data, options, min_classes=recipe.min_classes)
            how |= _changed(chosen) if how["plan"] is not None else {"recipe": recipe}
            run = train(source, out=folder, progress=TerminalProgress(), **how)
    if as_json:
        print_json(_run_json(run) | {"seconds": run.seconds})
    else:
        print_results(run.results.values())
        print_run_files(run)


def _changed(chosen: dict[str, Any]) -> dict[str, Any]:
    """The options that differ from their defaults."""
    return {name: value for name, value in chosen.items() if value != defaults()[name]}


def _run_json(run: Run) -> dict[str, Any]:
    """The files and the scores of a run."""
    return run_files(run) | {"scores": {name: scores.as_json() for name, scores in run.results.items()}}


def _check_data(context: click.Context, data: str | None, resume: Path | None) -> None:
    """Raises a usage error unless there are either data, or a run to resume without options that it cannot have."""
    if data is not None and resume is not None:
        raise click.UsageError("--resume: a resumed run keeps its original data; leave DATA out.", context)
    if data is None and resume is None:
        raise click.UsageError("Missing argument DATA. Give the data, or an interrupted run with --resume.", context)
    if resume is not None:
        _refuse_options(context)


def _refuse_options(context: click.Context) -> None:
    """Raises a usage error for options that cannot be combined with --resume."""
    for parameter in context.command.params:
        name = parameter.name or ""
        is_given = context.get_parameter_source(name) in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
        if is_given and name not in GO_WITH_RESUME:
            raise click.UsageError(
                f"{parameter.opts[-1]}: a resumed run keeps its original options; leave this one out. Only --json, "
                "--watch, --watch-port, --workers and --ray can be combined with --resume.",
                context,
            )


@contextmanager
def _watched(folder: Path | None, port: int) -> Iterator[None]:
    """Shows the live page of a run during the block; no page for None."""
    if folder is None:
        yield
        return
    from headstart.serve.watch.process import open_in_browser, watched_beside

    try:
        with watched_beside(folder, port=port) as address:
            where = address()
            say(f"Watch the run at {where}")
            open_in_browser(where)
            yield
    finally:
        if (folder / "recipe.json").is_file():
            say(f"To open that page again: headstart watch {printable(str(folder))}")


@click.command("retrain", cls=Command)
@run_argument
@option(
    "--corrections",
    type=FILE,
    metavar="FOLDER",
    default_text="auto (RUN-corrections)",
    help="Folder of corrected images with one subfolder per class, as written by the page of headstart serve.",
)
@out_option("New or empty folder for the new run.", "auto (RUN-2, RUN-3, ...)", "FOLDER")
@device_option
@json_option()
def retrain_command(run: Path, corrections: Path | None, out: Path | None, device: str, as_json: bool) -> None:
    """Train a finished run again with corrected labels, and compare before and after.

    The new run has the options and the split of RUN. Corrected images of the run stay in train, val or test, with
    their new labels; other images are added to train.
    """
    with importing():
        from headstart.progress import TerminalProgress
        from headstart.verbs.retrain import retrain

    done = retrain(run, corrections, out=out, device=device, progress=TerminalProgress())
    if as_json:
        print_json(_run_json(done.run) | {"changes": [change.as_json() for change in done.changes]})
        return
    print_results(done.run.results.values())
    for sentence in done.sentences or ["The runs cannot be compared: they have no held-out image in common."]:
        print(sentence)
    print_run_files(done.run)


@click.command("demo", cls=Command)
@out_option("Folder to write the images and the run into.", "headstart-demo", "FOLDER", default=Path("headstart-demo"))
@device_option
def demo_command(out: Path, device: str) -> None:
    """Write 1,797 images of handwritten digits to a folder, and train on them.

    Needs no network connection and no data.
    """
    with importing():
        from headstart.demo import write_digits
        from headstart.files import user_path
        from headstart.pipeline.train import train
        from headstart.progress import TerminalProgress
        from headstart.runs.folder import next_free

    out = user_path(out)
    count = write_digits(out / "digits")
    say(f"Wrote {count:,} images of handwritten digits to {out / 'digits'}.")
    run = train(out / "digits", out=next_free(out / "run"), effort="probe", device=device, progress=TerminalProgress())
    print_results(run.results.values())
    print_run_files(run)
