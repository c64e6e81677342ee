"""``headstart export`` and ``verify``: models as files for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headstart.cli.options import (
    FILE,
    SOURCE,
    Command,
    allow_loss_option,
    column_options,
    device_option,
    json_option,
    model_argument,
    open_source,
    option,
    out_option,
)
from headstart.cli.process_settings import importing
from headstart.cli.render import print_json, print_table, say
from headstart.figures import interval_text, percent_text

if TYPE_CHECKING:
    from headstart.data.dataset import Dataset
    from headstart.exports.parity import FormatResult
    from headstart.verbs.export import Exported


@click.command("export", cls=Command)
@model_argument
@option(
    "--to",
    type=click.Choice(["onnx", "openvino", "torch", "timm", "litert", "coreml", "executorch", "web"]),
    default_text="onnx",
    help="Format. onnx: for ONNX Runtime; openvino: a folder for OpenVINO; torch: PyTorch's ExportedProgram (.pt2); "
    "timm: a folder for the hub that timm and transformers load; web: a folder with a page for browsers. For phones: "
    "litert (.tflite), coreml (.mlpackage), executorch (.pte); their converters are installed at first use, apart from "
    "this Python.",
)
@option(
    "--all",
    "is_all",
    is_flag=True,
    default_text="off",
    help="Export to every format, and write a table of size, agreement, accuracy and speed, also into the report.",
)
@out_option("File to write; with --all a folder.", "auto (beside the model; with --all exports in the run folder)")
@option(
    "--data",
    type=SOURCE,
    metavar="DATA",
    default_text="auto (the val, test or train images of the run)",
    help="Images to compare the exported file on: a folder, table, archive, or URL.",
)
@option(
    "--quantize",
    type=click.Choice(["int8", "float16"]),
    default_text="off",
    help="int8: quantize weights and activations to 8 bits, calibrated on the images: about a quarter of the file size "
    "(onnx, openvino, web, litert). float16: weights of 16 bits (litert).",
)
@allow_loss_option
@option(
    "--ort-files",
    type=FILE,
    metavar="PATH",
    default_text="auto (node_modules, the cache, or a download with npm)",
    help="For --to web: folder or archive (.tgz) of the npm package onnxruntime-web.",
)
@device_option
@column_options
@json_option()
def export_command(
    run_or_model: Path,
    to: str | None,
    is_all: bool,
    out: Path | None,
    data: str | None,
    quantize: str | None,
    allow_loss: bool,
    ort_files: Path | None,
    device: str,
    as_json: bool,
    **columns: Any,
) -> None:
    """Export a model to a file or folder that runs without Headstart: pixels of any size in, probabilities out.

    MODEL is a run folder, a model file, or hf://OWNER/NAME. The file is opened in a new process and compared with the
    model on up to 500 images; it is removed if it differs. Core ML files are not compared unless this is a Mac.
    """
    if is_all:
        others = {"--to": to, "--quantize": quantize, "--allow-loss": allow_loss, "--ort-files": ort_files}
        if given := [name for name, value in others.items() if value]:
            raise click.UsageError(f"{given[0]}: --all writes every format and variant. Leave one out.")
        _export_all(run_or_model, out, open_source(data, columns, min_classes=1), device, as_json)
        return
    with importing():
        from headstart.progress import TerminalProgress
        from headstart.verbs.export import export

    found = export(
        run_or_model,
        to or "onnx",
        out=out,
        data=open_source(data, columns, min_classes=1),
        quantize=quantize or "",
        allow_loss=allow_loss,
        ort_files=ort_files,
        device=device,
        progress=TerminalProgress(),
    )
    if as_json:
        print_json(found.as_json())
        return
    _print(found)
    for language, text in found.snippets.items():
        print(f"\n{language}:\n\n{text}")


def _export_all(run_or_model: Path, out: Path | None, data: str | Dataset | None, device: str, as_json: bool) -> None:
    with importing():
        from headstart.progress import TerminalProgress
        from headstart.verbs.export_table import export_all

    table = export_all(run_or_model, out=out, data=data, device=device, progress=TerminalProgress())
    if as_json:
        print_json(table.as_json())
        return
    print_table(table.HEADER, [row.cells() for row in table.rows])
    print(f"Compared on {table.images}.")
    print(f"Folder: {table.folder}")


@click.command("verify", cls=Command)
@click.argument("file", type=FILE)
@click.argument("data", type=SOURCE)
@option(
    "--model",
    type=FILE,
    metavar="MODEL",
    default_text="auto (the model of the run; if DATA is not a run, only accuracy is checked)",
    help="Run or model file to compare with.",
)
@allow_loss_option
@device_option
@column_options
@json_option()
def verify_command(
    file: Path, data: str, model: Path | None, allow_loss: bool, device: str, as_json: bool, **columns: Any
) -> None:
    """Compare an exported file or folder with its model again. Exit status 1 if it differs.

    DATA is a folder with one folder of images per class, a table, an archive, their URL, or a run, whose val images and
    model are used.
    """
    with importing():
        from headstart.progress import TerminalProgress
        from headstart.verbs.export import verify

    found = verify(
        file,
        open_source(data, columns, min_classes=1),
        model=model,
        allow_loss=allow_loss,
        device=device,
        progress=TerminalProgress(),
    )
    if as_json:
        print_json(found.as_json())
    else:
        _print(found)
    if found.faults:
        say(f"Error: {file}: {'; '.join(found.faults)}.")
        raise click.exceptions.Exit(1)


@click.command("space", cls=Command)
@model_argument
@out_option("Folder to write.", metavar="FOLDER", required=True)
@option(
    "--data",
    type=SOURCE,
    metavar="DATA",
    default_text="auto (the val, test or train images of the run)",
    help="Images to compare the exported file on: a folder, table, archive, or URL.",
)
@option("--title", default="", default_text="auto (the name of the data)", help="Title of the page.")
@device_option
@column_options
@json_option()
def space_command(
    run_or_model: Path, out: Path, data: str | None, title: str, device: str, as_json: bool, **columns: Any
) -> None:
    """Write a Gradio Space: a folder with a page for the model, which runs without Headstart.

    MODEL is a run folder, a model file, or hf://OWNER/NAME. The folder has the model as an ONNX file, which is compared
    with the model as headstart export does, app.py, requirements.txt, and README.md with the settings of a Space.
    """
    with importing():
        from headstart.progress import TerminalProgress
        from headstart.verbs.gradio_space import space

    written = space(
        run_or_model,
        out,
        data=open_source(data, columns, min_classes=1),
        title=title,
        device=device,
        progress=TerminalProgress(),
    )
    if as_json:
        print_json(written.as_json())
        return
    _print(written.exported)
    print(f"Space: {written.folder}\nRun it: pip install -r requirements.txt, then python app.py, in this folder")
    print(f"Publish it: hf upload OWNER/NAME {written.folder} . --repo-type space")


def _print(found: Exported) -> None:
    """One row for each format, and the effect of decoding by other programs."""
    print_table(
        ["format", "accuracy", "correct", "95 % CI", "same answer", "largest difference", "size", "images/s"],
        [_row(one) for one in found.formats],
    )
    if found.unverified:
        print(f"Not verified on this machine: {found.unverified}.")
    else:
        print(f"Compared on {found.formats[-1].images:,} images, {found.images}.")
    if found.quantised is not None:
        print(f"Quantized: {found.quantised}.")
    if (whole := found.formats[-1].full_size) is not None:
        print(
            f"{whole.images:,} images are JPEGs that Headstart decodes at reduced size. Decoded at full size, as "
            f"other programs do, {whole.same:,} get the same prediction, {whole.correct:,} are classified correctly "
            f"instead of {whole.correct_reduced:,}, and probabilities differ by at most {whole.largest:.2f}."
        )
    if found.not_checked:
        print(found.not_checked)
    print(f"File: {found.file}")


def _row(one: FormatResult) -> list[str]:
    from headstart.cache.entries import size_text

    return [
        one.name,
        percent_text(one.accuracy),
        f"{one.correct:,}/{one.images:,}",
        interval_text(one.low, one.high),
        "-" if one.clear is None else f"{one.same:,}/{one.clear:,}",
        "-" if one.largest is None else f"{one.largest:.1e}",
        size_text(one.bytes) if one.bytes else "-",
        f"{one.rate:.0f}",
    ]
