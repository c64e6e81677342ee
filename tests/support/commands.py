"""The command in this process, and its subcommands."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest

from headstart.cli import main as cli


def main(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Runs the command in this process; returns exit status, stdout and stderr."""
    before = sys.argv
    sys.argv = ["headstart", *map(str, arguments)]
    try:
        cli.main()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.argv = before
    out, err = capsys.readouterr()
    return status, out, err


def child_of(test_file: str, script: str, *arguments: object) -> list[str]:
    """The command line of a Python process that imports every name of a test file and runs a script.

    Args:
        test_file: ``__file__`` of the test.
        script: source code to run; ``sys.argv[1:]`` are the arguments.
        *arguments: arguments of the script.
    """
    folders = [str(Path(test_file).parent), str(Path(__file__).parent)]
    start = f"import sys; sys.path[:0] = {folders!r}; from {Path(test_file).stem} import *\n"
    return [sys.executable, "-c", start + script, *map(str, arguments)]


def all_commands() -> dict[str, click.Command]:
    """Name -> subcommand."""
    context = click.Context(cli.app)
    found = {name: cli.app.get_command(context, name) for name in cli.app.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}
