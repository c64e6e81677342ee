"""The ``headstart-runtime`` command: predictions and the server of an exported ONNX file, without PyTorch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from ..errors import HeadstartError

if TYPE_CHECKING:
    from ..prediction import Prediction

STOPPED = 130
"""Exit status after Ctrl-C: 128 + SIGINT."""

BROKEN_PIPE = 141
"""Exit status if the output pipe is closed: 128 + SIGPIPE."""

TABLES = (".csv", ".json")


def run() -> NoReturn:
    """The command as a process: ``main`` and its exit status, without the shutdown of the interpreter."""
    status = main(sys.argv[1:])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        status = BROKEN_PIPE
    os._exit(status)


def main(arguments: Sequence[str]) -> int:
    """The command within a process; returns its exit status and prints an error as one line.

    Args:
        arguments: of the command line, without the name of the program.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            cast(Any, stream).reconfigure(errors="backslashreplace")
    try:
        given = _parser().parse_args(arguments)
        return int(given.function(given))
    except SystemExit as stop:  # of argparse, after help or a usage error
        return int(stop.code or 0)
    except HeadstartError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("headstart-runtime", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    predict = commands.add_parser("predict", help="Classify images.", allow_abbrev=False)
    predict.set_defaults(function=_predict)
    predict.add_argument("model", metavar="MODEL.onnx", help="file written by headstart export")
    predict.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    predict.add_argument("--out", type=Path, metavar="FILE", help="write the predictions to this .csv or .json file")
    predict.add_argument("--top", type=_number(1), default=1, metavar="N", help="classes to list, default 1")
    predict.add_argument("--json", action="store_true", help="print one JSON document to stdout")
    serve = commands.add_parser("serve", help="Serve the model over HTTP.", allow_abbrev=False)
    serve.set_defaults(function=_serve)
    serve.add_argument("model", metavar="MODEL.onnx", help="file written by headstart export")
    serve.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on, default 127.0.0.1")
    serve.add_argument(
        "--port", type=_number(0, 65535), default=8000, metavar="PORT", help="default 8000; 0: any free port"
    )
    serve.add_argument("--key", default=os.environ.get("HEADSTART_KEY", ""), help="API key, default $HEADSTART_KEY")
    _add_limits(serve)
    return parser


def _add_limits(parser: argparse.ArgumentParser) -> None:
    from .server import LIMITS, limit_option

    for flag in LIMITS:
        declared, default = limit_option(flag)
        text = f"{declared.help.rstrip('.')}, default {default:g}"
        unit, is_count = (declared.unit or "N").upper(), declared.scale == 1 and not declared.unit
        kind = _number(declared.minimum, is_count=is_count)
        parser.add_argument(f"--{flag}", type=kind, default=default, metavar=unit, help=text)


def _predict(given: argparse.Namespace) -> int:
    from ..files import check_suffix
    from ..progress import TerminalProgress
    from .onnx_model import load

    if given.out is not None:
        check_suffix(given.out, TABLES)
    model = load(given.model)
    predictions = model.predict(given.images, top=given.top, progress=TerminalProgress())
    note = "" if model.is_calibrated else model.calibration_text
    return show_predictions(predictions, out=given.out, as_json=given.json, note=note)


def show_predictions(
    predictions: Sequence[Prediction], *, out: Path | None, as_json: bool, note: str, excel: bool = False
) -> int:
    """Writes predictions to a file or prints them, and reports images that cannot be read.

    Args:
        predictions: of at least one image.
        out: .csv, .json or .parquet file to write; None to print the predictions.
        as_json: print one JSON document.
        note: that the model is not calibrated; "" if it is.
        excel: see ``write_predictions``.

    Returns:
        The exit status: 1 if no image can be read.

    Raises:
        OutputError: the file cannot be written.
    """
    from ..evaluation.tables import prediction_document, prediction_line, write_predictions
    from ..files import json_text, printable

    if out is not None:
        write_predictions(out, predictions, excel=excel)
    if note:
        print(note, file=sys.stderr)
    if as_json:
        uncalibrated = {"uncalibrated": note} if note else {}
        print(json_text([prediction_document(prediction) | uncalibrated for prediction in predictions], indent=1))
    elif out is None:
        for prediction in predictions:
            print(prediction_line(prediction))
    else:
        print(f"{out}: {len(predictions):,} images")
    unread = [prediction for prediction in predictions if prediction.label is None]
    if unread:
        first = f"{printable(unread[0].path)}: {unread[0].error}"
        print(f"{len(unread):,} of {len(predictions):,} images cannot be read. The first: {first}.", file=sys.stderr)
    return int(len(unread) == len(predictions))


def _serve(given: argparse.Namespace) -> int:
    from .onnx_model import load
    from .server import LIMITS, limits_from_options, serve

    limits = limits_from_options({flag: getattr(given, flag.replace("-", "_")) for flag in LIMITS})
    serve(load(given.model), host=given.host, port=given.port, key=given.key, limits=limits)
    return 0


def _number(minimum: float, maximum: float = float("inf"), *, is_count: bool = True) -> Callable[[str], float]:
    """The type of an option: a number from ``minimum`` to ``maximum``, whole if it is a count."""

    def parse(text: str) -> float:
        try:
            value = int(text) if is_count else float(text)
        except ValueError:
            value = float("nan")
        if not minimum <= value <= maximum:
            kind = "a whole number" if is_count else "a number"
            upper = "" if maximum == float("inf") else f" and at most {maximum:g}"
            raise argparse.ArgumentTypeError(f"{text!r}: expected {kind} of at least {minimum:g}{upper}")
        return value

    return parse
