"""``headstart check``: the data check."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headstart.cli.options import (
    FILE,
    Command,
    checked_options,
    column_options,
    data_argument,
    device_option,
    json_option,
    open_source,
    option,
    out_option,
    recipe_options,
)
from headstart.cli.process_settings import importing
from headstart.cli.render import print_json, print_table
from headstart.files import printable

if TYPE_CHECKING:
    from headstart.data.inspection import Inspection

SHOWN_ITEMS = 8
"""Maximum number of cases printed per finding."""


@click.command("check", cls=Command)
@data_argument
@out_option("New or empty folder for findings.json and check.html.", "off", "FOLDER")
@option(
    "--write",
    type=FILE,
    metavar="FILE",
    default_text="off",
    help="Write a table (.csv) for training: all images without serious findings or warnings.",
)
@option("--strict", is_flag=True, default_text="off", help="Exit with status 1 if a finding is serious. For scripts.")
@option(
    "--files-only",
    is_flag=True,
    default_text="off",
    help="Check only the files, without computing features: faster, but label errors and outliers are not found.",
)
@device_option
@recipe_options("backbone", "image_size", "fit", first=True)
@recipe_options("value_range", "val", "test", "seed", "weights", "accept_license")
@column_options
@json_option(group="output")
def check_command(
    data: str,
    out: Path | None,
    write: Path | None,
    strict: bool,
    files_only: bool,
    device: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Find unreadable, duplicate, mislabelled and out-of-distribution images. Changes no file.

    DATA is a folder with one folder of images per class, a table, an archive or shards; a path or a URL.
    """
    chosen = checked_options(options)
    with importing():
        from headstart.files import check_suffix
        from headstart.progress import TerminalProgress
        from headstart.runs.folder import choose_run_folder
        from headstart.verbs.check import check, write_check, write_clean

    if write is not None:
        check_suffix(write, [".csv"])
    folder = None if out is None else choose_run_folder(out, data)
    source = open_source(data, options, min_classes=1)
    look = check(source, files_only=files_only, device=device, progress=TerminalProgress(), **chosen)
    written = [] if folder is None else write_check(look, folder)
    left_out = None if write is None else write_clean(look, write)
    if as_json:
        print_json(_document(look))
    else:
        _print(look)
        for file in written:
            print(f"Written: {file}")
        if left_out is not None:
            print(f"Written: {write}, {len(look.dataset) - len(left_out):,} images; {len(left_out):,} excluded.")
    if strict and any(finding.severity == "serious" for finding in look.findings):
        raise click.exceptions.Exit(1)


def _document(look: Inspection) -> dict[str, object]:
    return {
        "data": look.dataset.root,
        "images": len(look.dataset),
        "usable": int(look.scanned.usable.sum()),
        "classes": list(look.dataset.classes),
        "split": "given" if look.split.given else "drawn",
        "split_origin": look.split.origin,
        "counts": look.counts(),
        "findings": [asdict(finding) for finding in look.findings],
    }


def _print(look: Inspection) -> None:
    counts = look.counts()
    usable = int(look.scanned.usable.sum())
    print(f"{look.dataset.root}: {usable:,} of {len(look.dataset):,} images usable, split {look.split.origin}")
    print_table(
        ["class", *counts],
        [[label, *(f"{part[label]:,}" for part in counts.values())] for label in look.dataset.classes],
    )
    if not look.findings:
        print("\nNo problem was found.")
        return
    print()
    print_table(
        ["severity", "finding", "images", "description"],
        [[f.severity, f.kind, f"{len(f.items):,}" if f.items else "-", f.message] for f in look.findings],
    )
    for finding in look.findings:
        if finding.items:
            print(f"\n{finding.kind}:")
        for item in finding.items[:SHOWN_ITEMS]:
            print(f"  {printable(item)}")
        if len(finding.items) > SHOWN_ITEMS:
            print(f"  and {len(finding.items) - SHOWN_ITEMS:,} more (--json lists all)")
