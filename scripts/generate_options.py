"""Writes the two files derived from the declaration of options: typed keyword arguments and ``docs/options.md``.

    python scripts/generate_options.py

A test compares both files with the declaration in ``headstart/training/recipe.py``.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import get_args

from headstart.training.former_options import RENAMED
from headstart.training.option import Group, Option, choices_of, default_text, flag_name
from headstart.training.recipe import Recipe, defaults, option_types, options_of

ROOT = Path(__file__).parents[1]
TYPED_DICT = ROOT / "headstart" / "training" / "recipe_options.py"
PAGE = ROOT / "docs" / "options.md"

GROUPS: tuple[str, ...] = get_args(Group)


def typed_dict() -> str:
    """``RecipeOptions``: every option of a recipe with its type and help; each is optional."""
    names = sorted({word for word in _annotations().values() if word.endswith("Name")})
    lines = [
        '"""Keyword arguments of ``train``, ``prepare``, ``check`` and ``compare``, with types for editors.',
        "",
        "Generated from the declaration in ``training/recipe.py`` by ``scripts/generate_options.py``.",
        '"""',
        "",
        "from __future__ import annotations",
        "",
        "from typing import TypedDict",
        "",
        f"from headstart.training.recipe import {', '.join(names)}",
        "",
        "",
        "class RecipeOptions(TypedDict, total=False):",
        '    """Options of a training run; see ``Recipe``."""',
    ]
    for name, declared in options_of().items():
        text = f"{declared.help} Default: {default_text(defaults()[name], declared.auto)}."
        lines += ["", f"    {name}: {_annotations()[name]}"]
        lines += textwrap.wrap(f'"""{text}"""', 116, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"


def page() -> str:
    """``docs/options.md``: a section for each group."""
    lines = [
        "# Options",
        "",
        "Options of `headstart train`, and keyword arguments of `hs.train`, `train_events` and `hs.prepare`.",
        "In Python, `auto` is `None`. `headstart check` and `headstart compare` accept some of them.",
        "This page is generated from the declaration of the options by `scripts/generate_options.py`.",
    ]
    for group in GROUPS:
        members = {name: declared for name, declared in options_of().items() if declared.group == group}
        if members:
            lines += ["", f"## {group.capitalize()}"]
            for name, declared in members.items():
                lines += ["", *_entry(name, declared)]
    lines += ["", "## Former names", "", "Run folders and model files with the former names can be read.", ""]
    lines += ["| former | today |", "|---|---|", *(f"| `{old}` | `{new}` |" for old, new in RENAMED.items())]
    return "\n".join(lines) + "\n"


def _entry(name: str, declared: Option) -> list[str]:
    facts = [f"Default: {default_text(defaults()[name], declared.auto)}."]
    if choices := choices_of(option_types()[name]):
        facts.append(f"Choices: {', '.join(f'`{choice}`' for choice in choices)}.")
    if declared.limits is not None:
        facts.append(f"Range: {declared.limits}.")
    if declared.requires:
        facts.append(f"Requires `{declared.requires}`.")
    if declared.excludes:
        facts.append(f"Cannot be combined with {', '.join(f'`{other}`' for other in declared.excludes)}.")
    flag = flag_name(name) if defaults()[name] is not True else f"{flag_name(name)} / --no-{flag_name(name)[2:]}"
    text = [*textwrap.wrap(declared.help, 116), *textwrap.wrap(" ".join(facts), 116)]
    return [f"### `{name}`", "", f"Command line: `{flag}`", "", *text]


def _annotations() -> dict[str, str]:
    return {name: Recipe.__annotations__[name] for name in options_of()}


if __name__ == "__main__":
    TYPED_DICT.write_text(typed_dict(), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
