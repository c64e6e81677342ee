"""``headstart serve`` and ``watch``: HTTP server of a model, and live page of a run."""

from __future__ import annotations

from pathlib import Path

import click

from headstart.cli.options import FILE, PORT, Callback, Command, device_option, model_argument, option, run_argument
from headstart.cli.process_settings import importing
from headstart.cli.render import say
from headstart.serve.limits import limit_option, limits_from_options

LIMITS = ("max-body", "max-images", "max-pixels", "queue", "connections", "timeout", "gather")
"""Options of the server's limits, which are declared in ``serve.limits``."""


def _limit_options(function: Callback) -> Callback:
    for flag in reversed(LIMITS):
        declared, default = limit_option(flag)
        is_count = declared.scale == 1 and not declared.unit
        function = option(
            f"--{flag}",
            type=click.IntRange(int(declared.minimum)) if is_count else click.FloatRange(declared.minimum),
            default=int(default) if is_count else default,
            metavar=(declared.unit or "N").upper(),
            default_text=f"{default:g}",
            help=declared.help,
        )(function)
    return function


@click.command("serve", cls=Command)
@model_argument
@option(
    "--host",
    default="127.0.0.1",
    metavar="ADDRESS",
    default_text="127.0.0.1",
    help="Address to listen on. 127.0.0.1: only this machine; 0.0.0.0: other machines as well.",
)
@option("--port", type=PORT, default=8000, metavar="PORT", help="Port; 0: any free port.", default_text="8000")
@option(
    "--key",
    envvar="HEADSTART_KEY",
    default="",
    metavar="KEY",
    default_text="$HEADSTART_KEY, else none",
    help="API key that clients must send, as Authorization: Bearer KEY. Set one if other machines can connect.",
)
@_limit_options
@option(
    "--corrections",
    type=FILE,
    metavar="FOLDER",
    default_text="auto (NAME-corrections next to the run or model)",
    help="Folder for images with labels corrected on the page; headstart retrain trains on them.",
)
@device_option
def serve_command(
    run_or_model: Path,
    host: str,
    port: int,
    key: str,
    corrections: Path | None,
    device: str,
    **limits: float,
) -> None:
    """Serve a model over HTTP, with a page to try it on. Stop it with Ctrl-C.

    MODEL is a run folder, a model file, or hf://OWNER/NAME. POST /v1/predict accepts images (multipart, field files);
    GET /v1/model, /healthz, /readyz, /metrics and /openapi.json return the model's metadata and status. Each request
    is logged as one line of JSON on stderr. An exported ONNX file is served without PyTorch; page, metrics and OpenAPI
    description need the model.
    """
    from headstart.runtime.onnx_model import is_onnx

    chosen = limits_from_options({flag: limits[flag.replace("-", "_")] for flag in LIMITS})
    if is_onnx(run_or_model):
        if corrections is not None or device not in ("auto", "cpu"):
            name = "--corrections" if corrections is not None else f"--device {device}"
            raise click.UsageError(f"{name}: not for an ONNX file, which runs on the CPU and has no page.")
        from headstart.loading import load_onnx
        from headstart.runtime.server import serve as serve_onnx

        serve_onnx(load_onnx(run_or_model), host=host, port=port, key=key, limits=chosen)
        return
    with importing():
        from headstart.progress import TerminalProgress
        from headstart.serve import serve

    serve(
        run_or_model,
        host=host,
        port=port,
        key=key,
        limits=chosen,
        corrections=corrections,
        device=device,
        progress=TerminalProgress(),
    )


@click.command("watch", cls=Command)
@run_argument
@option(
    "--port",
    type=PORT,
    default=0,
    metavar="PORT",
    help="Port of the page on this machine.",
    default_text="auto (any free port)",
)
@option("--beside", is_flag=True, hidden=True, help="Stop when the parent process stops; used by train --watch.")
def watch_command(run: Path, port: int, beside: bool) -> None:
    """Show a run on a page: plan, progress, curves, findings, most confident mistakes. Stop it with Ctrl-C.

    RUN is the folder of a run that is in progress, interrupted or finished. The page only reads the folder and does
    not slow down the training.
    """
    from headstart.files import user_path
    from headstart.serve.watch.process import open_in_browser, watch, watch_for_parent

    run = user_path(run)
    if beside:
        watch_for_parent(run, port=port)
        return

    def opened(where: str) -> None:
        say(f"{run} is shown at {where}. Stop it with Ctrl-C.")
        open_in_browser(where)

    watch(run, port=port, opened=opened)
