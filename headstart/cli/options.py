"""Command-line options: recipe options, generated from their declaration, and options shared by several commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, overload

import click

from headstart.errors import OptionError
from headstart.hub import is_address
from headstart.training.former_options import RENAMED
from headstart.training.option import Group, choices_of, default_text, flag_name
from headstart.training.recipe import (
    PRETRAINED,
    check_options,
    defaults,
    option_types,
    options_of,
)

if TYPE_CHECKING:
    from headstart.data.dataset import Dataset
    from headstart.data.table_columns import Columns

Callback = Callable[..., Any]
Decorator = Callable[[Callback], Callback]

FORMER_FLAGS = {
    **{flag_name(former): flag_name(name) for former, name in RENAMED.items()},
    "--wanted-accuracy": "--target-accuracy",
    "--live-batchnorm": "--update-batchnorm",
}
"""Former name of a command-line option -> current name."""

COLUMNS = {
    "path_column": ("image paths", "auto (path)"),
    "label_column": ("labels", "auto (label or labels)"),
    "split_column": ("splits: train, val or test", "auto (split, if there is one)"),
    "group_column": (
        "groups, such as cameras or patients; images of one group are kept in the same split",
        "auto (group, if there is one)",
    ),
}
"""Option for a table column -> content of the column, and default."""


class OptionWithDefault(click.Option):
    """A command-line option whose help ends with its default.

    Args:
        flags: names on the command line and name of the parameter.
        help: what the option does and when to use it.
        default_text: the default in words; "" for a required or hidden option.
        group: heading under which ``Command`` lists the option; "" for no heading.
        **settings: see ``click.Option``.
    """

    def __init__(self, flags: list[str], *, help: str, default_text: str = "", group: str = "", **settings: Any):
        self.group, self.default_text = group, default_text
        super().__init__(flags, help=f"{help} [default: {default_text}]" if default_text else help, **settings)

    def get_help_extra(self, ctx: click.Context) -> dict[str, Any]:  # type: ignore[override]  # noqa: ARG002
        """Returns nothing: the help text contains the default, and click's range notation is not shown."""
        return {}


HELP_OPTION: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
"""Context settings of every command; click caches the help option that the first context of a command creates."""


class Command(click.Command):
    """A command whose help lists its options under the headings of their groups."""

    def __init__(self, name: str | None, **settings: Any) -> None:
        super().__init__(name, context_settings=HELP_OPTION, **settings)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options without a group first, then each group in turn."""
        for group in ("", *get_args(Group)):
            records = [
                record
                for parameter in self.get_params(ctx)
                if isinstance(parameter, click.Option)
                and getattr(parameter, "group", "") == group
                and (record := parameter.get_help_record(ctx)) is not None
            ]
            if records:
                with formatter.section(group.capitalize() or "Options"):
                    formatter.write_dl(records, col_max=26)


class OrAuto(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """Wraps another type so that "auto" is accepted and means None."""

    def __init__(self, kind: click.ParamType[Any]) -> None:
        self.kind, self.name = kind, kind.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Converts a command-line value."""
        return None if value == "auto" else self.kind.convert(value, param, ctx)


MOST_DIGITS = 9
"""Digits of the numbers in ``--part``."""


class PartOfWork(click.ParamType):  # type: ignore[type-arg]  # as ``OrAuto``
    """I/N: the Ith of N parts."""

    name = "part"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Converts a command-line value to (I, N)."""
        number, _, count = str(value).partition("/")
        is_short = len(number) <= MOST_DIGITS and len(count) <= MOST_DIGITS
        if not (is_short and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            self.fail(f"{value!r:.60}: expected I/N with I from 1 to N, such as 3/16.", param, ctx)
        return int(number), int(count)


def option(*flags: str, help: str, **settings: Any) -> Decorator:
    """``click.option`` with the default in its help; see ``OptionWithDefault``."""
    return click.option(*flags, cls=OptionWithDefault, help=help, **settings)


def recipe_options(*names: str, first: bool | None = None) -> Decorator:
    """Adds recipe options, generated from their declaration.

    Args:
        *names: names of the options, in the order of the help.
        first: whether to list them before all groups; None for the declared place.
    """

    def decorate(function: Callback) -> Callback:
        for name in reversed(names):
            function = _recipe_option(name, first)(function)
        return function

    return decorate


def _recipe_option(name: str, first: bool | None) -> Decorator:
    declared, annotation, default = options_of()[name], option_types()[name], defaults()[name]
    is_first = declared.is_basic if first is None else first
    settings: dict[str, Any] = {
        "help": declared.help,
        "default": default,
        "default_text": default_text(default, declared.auto),
        "group": "" if is_first else declared.group,
    }
    if annotation is bool:
        flags = f"{flag_name(name)}/--no-{flag_name(name)[2:]}" if default else flag_name(name)
        return option(flags, name, is_flag=True, **settings)
    kinds = get_args(annotation) or (annotation,)
    if choices := choices_of(annotation):
        return option(flag_name(name), name, type=click.Choice(choices), **settings)
    kind = click.INT if int in kinds else click.FLOAT if float in kinds else click.STRING
    metavar = declared.metavar or ("N" if int in kinds else "X")
    return option(
        flag_name(name), name, type=OrAuto(kind) if type(None) in kinds else kind, metavar=metavar, **settings
    )


def checked_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe options among the parameters of a command, validated and with absolute paths.

    Raises:
        OptionError: a value is out of range, or two options contradict each other; the message names their flags.
    """
    given = {name: values[name] for name in options_of() if name in values}
    check_options({**defaults(), **given}, flag_name)
    return {name: _absolute(value) if options_of()[name].is_path else value for name, value in given.items()}


def _absolute(path: str | None) -> str | None:
    """Makes a path absolute; addresses on the hub and "pretrained" are unchanged."""
    from headstart.data.sources.addresses import resolved, user_address

    return path if path is None or path == PRETRAINED or is_address(path) else resolved(user_address(path))


def column_options(function: Callback) -> Callback:
    """Adds ``--path-column``, ``--label-column``, ``--split-column`` and ``--group-column`` for tables."""
    for name, (content, default) in reversed(COLUMNS.items()):
        text = f"Table column of the {content}."
        function = option(flag_name(name), help=text, metavar="NAME", default_text=default, group="data")(function)
    return function


@overload
def open_source(data: str, values: Mapping[str, Any], *, min_classes: int) -> str | Dataset: ...
@overload
def open_source(data: str | None, values: Mapping[str, Any], *, min_classes: int) -> str | Dataset | None: ...
def open_source(data: str | None, values: Mapping[str, Any], *, min_classes: int) -> str | Dataset | None:
    """The data set of a command: its path or URL, opened if table columns are given.

    Args:
        data: path or URL; None for no data.
        values: parameters of the command, including those of ``column_options``.
        min_classes: see ``open_data``.

    Raises:
        DataError: see ``open_data``.
        click.UsageError: table columns are given without data.
    """
    columns = chosen_columns(values).as_options()
    if not columns:
        return data
    if data is None:
        raise click.UsageError(f"{flag_name(next(iter(columns)))}: describes a table; give the data as well.")
    from headstart.data.dataset import open_data

    return open_data(data, min_classes=min_classes, **columns)


def chosen_columns(values: Mapping[str, Any]) -> Columns:
    """The columns of a table that options of ``column_options`` name."""
    from headstart.data.table_columns import Columns as Chosen

    return Chosen(*(values[name] or "" for name in COLUMNS))


OF_THE_CHOICE = ("minutes", "candidates", "max_cost", "plan")
"""Options of ``train`` beside those of a recipe that the choice of a backbone checks itself."""


def in_flags(error: OptionError) -> str:
    """The message of an OptionError, with the flag of the option instead of its Python name."""
    name, mark, rest = str(error).partition(":")
    option_name, _, value = name.partition(" ")
    if mark and (option_name in options_of() or option_name in OF_THE_CHOICE) and " " not in value:
        return f"{flag_name(option_name)}{f' {value}' if value else ''}:{rest}"
    return str(error)


FILE = click.Path(path_type=Path)

PORT = click.IntRange(0, 65535)

SOURCE = click.STRING
"""Images or data: a path, a pattern or a URL, whose slashes a ``Path`` would change."""

data_argument = click.argument("data", type=SOURCE)
run_argument = click.argument("run", type=FILE)
model_argument = click.argument("run_or_model", metavar="MODEL", type=FILE)


def out_option(help: str, default_text: str = "", metavar: str = "FILE", **settings: Any) -> Decorator:
    """Adds ``--out``, the output of a command."""
    return option("--out", type=FILE, metavar=metavar, help=help, default_text=default_text, **settings)


def json_option(group: str = "") -> Decorator:
    """Adds ``--json``, which prints the results as one JSON document to stdout."""
    text = "Print the results as one JSON document to stdout."
    return option("--json", "as_json", is_flag=True, help=text, default_text="off", group=group)


def ray_option(what: str, group: str = "") -> Decorator:
    """Adds ``--ray``; ``what`` begins its help, up to the words "at this address"."""
    return option(
        "--ray",
        is_flag=False,
        flag_value="local",
        metavar="[ADDRESS]",
        help=f"{what} at this address; auto: the cluster that this machine belongs to. Without an address, a cluster "
        "is started on this machine.",
        default_text="off",
        group=group,
    )


def workers_option(text: str, group: str = "") -> Decorator:
    """Adds ``--workers``; ``text`` is its help."""
    default = "auto (1; with --ray one for each GPU or CPU)"
    return option("--workers", type=click.IntRange(1), metavar="N", help=text, default_text=default, group=group)


def shard_options(function: Callback) -> Callback:
    """Adds ``--workers``, ``--ray``, ``--shard-size`` and ``--part``, for work whose output is a folder of shards."""
    for add in (
        option(
            "--part",
            type=PartOfWork(),
            metavar="I/N",
            help="With --out FOLDER: compute every Nth shard, beginning with the Ith. Use it for N independent "
            "processes that share the folder, such as the tasks of a job array.",
            default_text="all shards",
        ),
        option(
            "--shard-size",
            type=click.IntRange(1),
            metavar="N",
            help="With --out FOLDER: number of images per shard. Each shard is one file; if the work is stopped, "
            "only complete shards are kept.",
            default_text="1000",
        ),
        ray_option("With --out FOLDER: compute on the Ray cluster"),
        workers_option("With --out FOLDER: number of processes, on this machine or, with --ray, on the cluster."),
    ):
        function = add(function)
    return function


def sharded(out: Path, values: Mapping[str, Any], names: Sequence[str], suffixes: Sequence[str]) -> bool:
    """Whether the output is a folder of shards and not one file: it has no suffix, or is a folder.

    Args:
        out: as given.
        values: parameters of the command.
        names: parameters that apply to shards only.
        suffixes: of a single file.

    Raises:
        click.UsageError: such a parameter is given, and the output is a file.
    """
    if not out.suffix or out.is_dir():
        return True
    if given := [name for name in names if values[name] is not None]:
        raise click.UsageError(
            f"{flag_name(given[0])}: writes a folder of shards; give --out a folder instead of a name that ends in "
            f"{', '.join(suffixes)}."
        )
    return False


def shard_settings(values: Mapping[str, Any], device: str) -> dict[str, Any]:
    """The arguments of ``distributed.bulk`` for the options of ``shard_options``."""
    from headstart.distributed.bulk import shard_engine
    from headstart.distributed.compute import Part
    from headstart.distributed.shards import SHARD_SIZE

    engine = shard_engine(workers=values["workers"], ray=values["ray"], device=device)
    number, count = values["part"] or (1, 1)
    return {"engine": engine, "shard_size": values["shard_size"] or SHARD_SIZE, "part": Part(number, count)}


device_option = option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    help="Device to compute on. auto: a GPU if one is available, else the CPU.",
    default_text="auto",
)
ignore_unknown_option = option(
    "--ignore-unknown",
    is_flag=True,
    help="Exclude images of classes that the model does not have, instead of failing.",
    default_text="off",
)
allow_loss_option = option(
    "--allow-loss",
    is_flag=True,
    help="Accept an int8 file that loses more than 1 percentage point of accuracy.",
    default_text="off",
)
