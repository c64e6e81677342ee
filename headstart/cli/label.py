"""``headstart label``: label images on a page in the browser."""

from __future__ import annotations

from pathlib import Path

import click

from headstart.cli.options import FILE, PORT, SOURCE, Command, device_option, option
from headstart.cli.process_settings import importing


@click.command("label", cls=Command)
@click.argument("source", metavar="IMAGES", type=SOURCE)
@option(
    "--labels",
    type=FILE,
    metavar="FILE",
    default_text="auto (NAME-labels.csv beside the images)",
    help="Table of labels: continued if it exists, and written after every action. headstart train accepts it.",
)
@option("--multi-label", is_flag=True, help="Allow any number of labels for an image.", default_text="off")
@option(
    "--corrections",
    type=FILE,
    metavar="FOLDER",
    default_text="none",
    help="Add the images that were corrected on the page of headstart serve, with their labels.",
)
@option(
    "--backbone",
    default="auto",
    metavar="NAME",
    default_text="auto",
    help="Backbone for the suggestions. Training that is started on the page does not use it.",
)
@option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    metavar="M",
    default_text="auto (as for headstart train)",
    help="Time for each training that is started on the page.",
)
@option(
    "--port",
    type=PORT,
    default=0,
    metavar="PORT",
    default_text="auto (any free port)",
    help="Port of the page on this machine.",
)
@option("--no-open", is_flag=True, help="Print the address and do not open the browser.", default_text="off")
@option(
    "--seed",
    type=click.INT,
    default=0,
    metavar="N",
    default_text="0",
    help="Seed of the random sample of images that measures the accuracy.",
)
@device_option
def label_command(
    source: str,
    labels: Path | None,
    multi_label: bool,
    corrections: Path | None,
    backbone: str,
    minutes: float | None,
    port: int,
    no_open: bool,
    seed: int,
    device: str,
) -> None:
    """Label images on a page, with a classifier that is updated while you label. Stop it with Ctrl-C.

    IMAGES is a folder, whether or not it has class folders; an archive, a table, a pattern or a URL. The page is
    served on this machine only, and no image leaves it. Labels are written to a table beside the images after every
    action; the images are never changed. The same command continues later.
    """
    with importing():
        from headstart.progress import TerminalProgress
        from headstart.serve.labelling.process import label

    label(
        source,
        labels=labels,
        corrections=corrections,
        port=port,
        backbone=backbone,
        multi_label=multi_label,
        seed=seed,
        device=device,
        train_options=() if minutes is None else ("--minutes", f"{minutes:g}"),
        open_browser=not no_open,
        progress=TerminalProgress(),
    )
