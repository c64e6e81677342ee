"""Declaration of options: ranges, choices, rules and types."""

from __future__ import annotations

import math
from typing import Literal

import pytest

from headstart.errors import OptionError
from headstart.training.option import Option, Range, as_type, check_limits, check_rules, default_text, flag_name


@pytest.mark.parametrize(
    ("limits", "accepted", "refused", "text"),
    [
        (Range(1, 10_000), [1, 10_000], [0, 10_001, math.nan], "1 to 10,000"),
        (Range(16, unit="pixels"), [16, 1e9], [15], "at least 16 pixels"),
        (Range(0, 1, excludes_low=True), [1e-9, 1], [0, 1.1], "more than 0 and at most 1"),
        (Range(0, 1, excludes_high=True), [0, 0.999], [1, -0.1], "0 or more and less than 1"),
        (Range(0, excludes_low=True), [0.1], [0], "more than 0"),
    ],
)
def test_a_range_accepts_what_it_says(limits: Range, accepted: list[float], refused: list[float], text: str) -> None:
    assert [number in limits for number in (*accepted, *refused)] == [True] * len(accepted) + [False] * len(refused)
    assert str(limits) == text


def test_a_value_outside_of_choices_or_range_is_named_with_what_is_expected() -> None:
    with pytest.raises(OptionError, match=r"^--pool 'mean': expected one of avg, max\.$"):
        check_limits("pool", "mean", Literal["avg", "max"], None, flag_name)
    with pytest.raises(OptionError, match=r"^epochs 0: expected 1 to 9\.$"):
        check_limits("epochs", 0, int, Range(1, 9))
    check_limits("epochs", None, int | None, Range(1, 9))


def test_an_option_that_requires_or_excludes_another_says_why() -> None:
    options = {
        "a": Option("head", "A.", requires="b", reason="b comes first"),
        "b": Option("head", "B."),
        "c": Option("head", "C.", excludes=("b",), reason="there is one of them"),
    }
    check_rules(options, ["a", "b"])
    with pytest.raises(OptionError, match=r"^a: requires b; b comes first\.$"):
        check_rules(options, ["a"])
    with pytest.raises(OptionError, match=r"^b: cannot be combined with c; there is one of them\. Leave one"):
        check_rules(options, ["b", "c"])


@pytest.mark.parametrize(
    ("value", "annotation", "found"), [(3, float, 3.0), (None, int | None, None), ("a", Literal["a", "b"], "a")]
)
def test_a_value_is_converted_to_its_declared_type(value: object, annotation: object, found: object) -> None:
    assert as_type("x", value, annotation) == found
    assert type(as_type("x", value, annotation)) is type(found)


@pytest.mark.parametrize(("value", "annotation"), [(True, int), ("3", int), (None, float), (3, str | None), (1, bool)])
def test_a_value_of_another_type_is_refused(value: object, annotation: object) -> None:
    with pytest.raises(OptionError, match=r"^x: expected"):
        as_type("x", value, annotation)


def test_the_text_of_a_default() -> None:
    assert [default_text(value, "") for value in (True, False, 0.5, "probe")] == ["on", "off", "0.5", "probe"]
    assert default_text(None, "set by effort") == "auto (set by effort)"
