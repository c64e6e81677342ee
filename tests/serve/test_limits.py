"""Each limit is declared once; the command line and the documentation derive from the declaration."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from commands import all_commands

from headstart.serve.limits import ServerLimits, limit_option, limits_from_options, limits_table

FLAGS = ["max-body", "max-images", "max-pixels", "queue", "connections", "timeout", "gather"]


def test_every_limit_documents_what_happens_beyond_it() -> None:
    for field in fields(ServerLimits):
        option = field.metadata["limit"]
        assert option.help.endswith("."), field.name
        assert option.exceeded, field.name
        assert field.name in (ServerLimits.__doc__ or "")
    assert sorted(f.metadata["limit"].flag for f in fields(ServerLimits) if f.metadata["limit"].flag) == sorted(FLAGS)


def test_the_command_line_has_the_declared_options_with_their_defaults_and_help() -> None:
    command = all_commands()["serve"]
    options = {name.removeprefix("--"): parameter for parameter in command.params for name in parameter.opts}
    for flag in FLAGS:
        option, default = limit_option(flag)
        assert options[flag].default == default, flag
        assert options[flag].help.startswith(option.help), flag
        assert options[flag].type.min == option.minimum, flag
    with pytest.raises(KeyError):
        limit_option("nothing")


def test_values_of_the_command_line_become_limits_in_their_units() -> None:
    assert limits_from_options({}) == ServerLimits()
    limits = limits_from_options({"max-body": 200, "max-pixels": 0.5, "queue": 3, "gather": 2})
    assert (limits.max_body_bytes, limits.max_buffered_bytes) == (200_000_000, 400_000_000)
    assert (limits.max_pixels, limits.max_queued_images, limits.batch_wait_ms) == (500_000, 64, 2)
    assert isinstance(limits.max_pixels, int)


def test_the_documentation_has_the_table_of_limits() -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "serve.md"
    assert limits_table() in page.read_text(), f"paste this into {page}:\n{limits_table()}"
