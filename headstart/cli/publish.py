"""``headstart report`` and ``push``: the report of a run, and publishing its model."""

from __future__ import annotations

from pathlib import Path

import click

from headstart.cli.options import Command, json_option, option, out_option, run_argument
from headstart.cli.process_settings import importing
from headstart.cli.render import print_json


@click.command("report", cls=Command)
@run_argument
@out_option("File to write (.html).", "auto (report.html in the run folder)")
@json_option()
def report_command(run: Path, out: Path | None, as_json: bool) -> None:
    """Write the report of a finished run again, as one self-contained HTML file."""
    with importing():
        from headstart.files import check_suffix
        from headstart.progress import TerminalProgress
        from headstart.verbs.report import report

    if out is not None:
        check_suffix(out, [".html"])
    file = report(run, out, progress=TerminalProgress())
    if as_json:
        print_json({"report": str(file), "bytes": file.stat().st_size})
    else:
        print(f"Report: {file}")


@click.command("push", cls=Command)
@run_argument
@click.argument("repository")
@option("--private", is_flag=True, default_text="off", help="Create the repository as private if it does not exist.")
@option(
    "--with-report",
    is_flag=True,
    default_text="off",
    help="Upload the report as well, which contains thumbnails of the images.",
)
@option(
    "--no-timm",
    is_flag=True,
    default_text="off",
    help="Leave out the files with which timm and transformers load the repository.",
)
@option(
    "--accept-license",
    is_flag=True,
    default_text="off",
    help="Publish a model that was made from pretrained weights whose licence restricts their use. Read whether it "
    "allows publication first.",
)
@json_option()
def push_command(
    run: Path, repository: str, private: bool, with_report: bool, no_timm: bool, accept_license: bool, as_json: bool
) -> None:
    """Publish the model of a finished run on the Hugging Face hub, with its model card.

    REPOSITORY is OWNER/NAME; it is created if it does not exist. Images are not uploaded. hs.load("hf://OWNER/NAME")
    and every command with a MODEL argument load it from there. If timm can express the model, timm and transformers
    load it too; the files for them are compared with the model on images of the run first.
    """
    with importing():
        from headstart.progress import TerminalProgress
        from headstart.verbs.push import push

    url = push(
        run,
        repository,
        private=private,
        with_report=with_report,
        with_timm=not no_timm,
        accept_license=accept_license,
        progress=TerminalProgress(),
    )
    if as_json:
        print_json({"repository": repository, "url": url, "model": f"hf://{repository}"})
    else:
        print(f"{url}\nModel: hf://{repository}")
