"""Command-line options: each has help text with its default, and errors name its flag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from commands import all_commands
from deny_list import denied_words

from headstart.cli import main as cli
from headstart.cli.options import FORMER_FLAGS, Command, OptionWithDefault, PartOfWork, checked_options, in_flags
from headstart.errors import OptionError
from headstart.training.option import flag_name
from headstart.training.recipe import defaults, options_of

OPTIONS = [
    pytest.param(option, id=f"{name} {option.opts[0]}")
    for name, command in all_commands().items()
    for option in command.params
    if isinstance(option, click.Option) and not option.hidden
]


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_has_help_that_ends_with_its_default(option: click.Option) -> None:
    assert isinstance(option, OptionWithDefault)
    assert len(option.help.split(" [default: ")[0]) > 10
    assert option.required or option.help.endswith("]"), "no default"
    assert option.required or option.default_text


@pytest.mark.parametrize("option", OPTIONS)
def test_no_help_contains_a_word_of_the_deny_list(option: click.Option) -> None:
    assert denied_words(option.help) == []


@pytest.mark.parametrize("name", all_commands())
def test_no_description_of_a_command_contains_a_word_of_the_deny_list(name: str) -> None:
    assert denied_words(all_commands()[name].help) == []


def test_the_deny_list_finds_its_words() -> None:
    assert denied_words("The gravest findings first, 508 of 550 right.") == [
        "'gravest': write 'most severe'",
        "'508 of 550 right': write 'percent first, then count: 92.4 % (508/550)'",
    ]


@pytest.mark.parametrize("name", ["train", "check", "extract", "layers", "compare"])
def test_an_option_of_a_recipe_is_the_same_on_every_command(name: str) -> None:
    for option in all_commands()[name].params:
        if option.name in options_of() and isinstance(option, OptionWithDefault) and not option.multiple:
            assert option.opts == [flag_name(option.name)]
            assert option.get_default(click.Context(all_commands()[name])) == defaults()[option.name]
            assert options_of()[option.name].help in option.help


def test_options_are_checked_by_their_flags_and_paths_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"rehearsal": "images", "extend": "hf://me/flowers", "seed": 3, "other": 1}
    assert checked_options(given) == {"rehearsal": str(tmp_path / "images"), "extend": "hf://me/flowers", "seed": 3}
    assert checked_options({"extend": "pretrained"}) == {"extend": "pretrained"}
    with pytest.raises(OptionError, match=r"^--rehearsal: requires --extend; "):
        checked_options({"rehearsal": "images"})


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("image_size 5: expected more.", "--image-size 5: expected more."),
        ("minutes nan: expected more.", "--minutes nan: expected more."),
        ("max_cost: has no effect.", "--max-cost: has no effect."),
        ("single_logit: expects two classes.", "--single-logit: expects two classes."),
        ("test images of two classes: expected more.", "test images of two classes: expected more."),
        ("shares of val 0.5 and test 0.6: expected less.", "shares of val 0.5 and test 0.6: expected less."),
        ("nothing", "nothing"),
    ],
)
def test_an_error_about_an_option_of_python_names_its_flag(message: str, shown: str) -> None:
    assert in_flags(OptionError(message)) == shown


def test_help_has_the_same_names_in_a_command_by_itself_and_in_the_group() -> None:
    command = click.command("alone", cls=Command)(lambda: None)
    for parent in (None, cli.app.make_context("headstart", ["train"])):
        context = command.make_context("alone", [], parent=parent)
        assert command.get_help_option_names(context) == ["-h", "--help"]
        assert "-h, --help" in command.get_help(context)


def test_former_flags_lead_to_options_that_exist() -> None:
    flags = {flag for command in all_commands().values() for option in command.params for flag in option.opts}
    assert set(FORMER_FLAGS.values()) <= flags
    assert not set(FORMER_FLAGS) & flags


def invoke(*arguments: str) -> dict[str, Any]:
    return all_commands()["train"].make_context("train", ["data", *arguments]).params


def test_auto_means_none() -> None:
    assert invoke("--epochs", "auto", "--backbone", "auto", "--val", "auto") == invoke()
    assert invoke("--epochs", "3")["epochs"] == 3
    with pytest.raises(click.BadParameter, match="'three' is not a valid integer"):
        invoke("--epochs", "three")


@pytest.mark.parametrize("part", ["3", "0/2", "3/2", "1/", "a/b", "1/" + "9" * 5_000])
def test_a_part_that_is_none_is_a_usage_error(part: str) -> None:
    with pytest.raises(click.UsageError, match="expected I/N") as caught:
        PartOfWork().convert(part, None, None)
    assert len(str(caught.value)) < 200
    assert PartOfWork().convert("3/16", None, None) == (3, 16)
