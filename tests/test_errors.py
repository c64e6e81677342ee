"""The tree of errors and its table."""

from __future__ import annotations

import inspect
import runpy

import pytest
from documents import ROOT

from headstart import errors
from headstart.errors import HeadstartError, MissingExtra, suggestion

SCRIPT = runpy.run_path(str(ROOT / "scripts" / "generate_errors.py"))

ERRORS = [value for value in vars(errors).values() if inspect.isclass(value) and value.__module__ == errors.__name__]


def test_the_table_of_errors_is_up_to_date() -> None:
    assert SCRIPT["PAGE"].read_text(encoding="utf-8") == SCRIPT["page"](), "run python scripts/generate_errors.py"


def test_errors_form_one_tree() -> None:
    assert next(error for _, error in SCRIPT["tree"]()) is HeadstartError
    assert {error for _, error in SCRIPT["tree"]()} == set(ERRORS)


@pytest.mark.parametrize("error", ERRORS)
def test_each_error_documents_its_condition_and_remedy(error: type[HeadstartError]) -> None:
    when, remedy = SCRIPT["parts"](error)
    assert when.endswith(".")
    assert remedy.endswith(".")


def test_a_missing_extra_is_an_import_error_as_well() -> None:
    assert issubclass(MissingExtra, ImportError)


def test_a_similar_name_is_suggested() -> None:
    assert suggestion("blocks5", ["blocks.5", "layer4"]) == " Did you mean blocks.5?"
    assert suggestion("xyz", ["blocks.5", "layer4"]) == ""
