"""The ``headstart`` command: subcommands, error messages and exit status.

Progress goes to stderr, results to stdout; ``--json`` prints one JSON document. Exit status: 0 success, 1 error with a
message, 2 usage error, 130 Ctrl-C, 141 closed output pipe. The module of a subcommand is imported when it runs, so that
``headstart --help`` imports no heavy library.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, NoReturn, cast

import click

from headstart.cli.options import FORMER_FLAGS, HELP_OPTION, in_flags
from headstart.cli.process_settings import quiet_libraries
from headstart.cli.render import say
from headstart.deferred_compiler import defer_compiler
from headstart.errors import HeadstartError, OptionError

STOPPED = 130
"""Exit status after Ctrl-C: 128 + SIGINT."""

BROKEN_PIPE = 141
"""Exit status if the output pipe is closed: 128 + SIGPIPE."""

COMMANDS = {
    "label": ("label", "Label images on a page, with suggestions."),
    "train": ("train", "Train a classifier on labelled images."),
    "retrain": ("train", "Train again with corrected labels, and compare."),
    "watch": ("serve", "Show the progress of a run on a page."),
    "demo": ("train", "Train on handwritten digits, without network or data."),
    "check": ("check", "Find unreadable, duplicate and mislabelled images."),
    "extract": ("features", "Write the features of images to a file."),
    "fit": ("features", "Fit a classifier to features in shards."),
    "layers": ("features", "List the layer groups of a backbone."),
    "evaluate": ("predict", "Score a model on labelled images."),
    "predict": ("predict", "Classify images."),
    "serve": ("serve", "Serve a model over HTTP, with a page."),
    "compare": ("compare", "Compare training methods, or two models."),
    "report": ("publish", "Write the report of a run again."),
    "push": ("publish", "Publish a model on the Hugging Face hub."),
    "export": ("export", "Export a model for other programs, phones or browsers."),
    "verify": ("export", "Compare an exported file with its model."),
    "space": ("export", "Write a Gradio page for a model."),
    "cache": ("cache", "List, verify or clear cached features."),
}
"""Subcommand -> its module in ``cli``, and its summary."""


class LazyGroup(click.Group):
    """A group whose subcommands are imported when they run."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Names in the order of ``COMMANDS``."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Imports a subcommand; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"headstart.cli.{COMMANDS[cmd_name][0]}")
        return cast(click.Command, getattr(module, f"{cmd_name}_command"))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Writes the summaries, without importing the subcommands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, name="headstart", context_settings=HELP_OPTION)
@click.version_option(package_name="headstart", message="%(version)s")
def app() -> None:
    """Train an image classifier from a folder of labelled images, by transfer learning.

    Start with: headstart train FOLDER, or headstart label FOLDER for images without labels.
    """


def run() -> NoReturn:
    """The ``headstart`` command as a process: ``main``, then an immediate exit.

    Shutting the interpreter down object by object takes over a second once torch is loaded.
    """
    status: str | int | None = 0
    defer_compiler()
    try:
        main()
    except SystemExit as stop:
        status = stop.code
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        status = BROKEN_PIPE
    os._exit(status if isinstance(status, int) else int(bool(status)))


def main() -> None:
    """The ``headstart`` command within a process; raises SystemExit."""
    for stream in (sys.stdout, sys.stderr):
        cast(Any, stream).reconfigure(errors="backslashreplace")
    quiet_libraries()
    sys.exit(_status(sys.argv[1:]))


def _status(arguments: list[str]) -> int:
    """Runs a command and prints its error, if any, as one line."""
    try:
        # not app.main(), which uses other exit statuses for Ctrl-C and a broken pipe
        with app.make_context("headstart", arguments) as context:
            app.invoke(context)
        return 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        say(f"Error: {_usage_text(error)}")
        return error.exit_code
    except HeadstartError as error:
        say(f"Error: {in_flags(error) if isinstance(error, OptionError) else error}")
        return 1
    except (KeyboardInterrupt, click.Abort):
        say("Stopped.")
        return STOPPED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def _usage_text(error: click.ClickException) -> str:
    """Message of a usage error, with the command for help; for a renamed option, its current name."""
    if isinstance(error, click.NoSuchOption) and error.option_name in FORMER_FLAGS:
        return f"{error.option_name} is now called {FORMER_FLAGS[error.option_name]}."
    text = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    return text if context is None else f"{text} See {context.command_path} --help."
