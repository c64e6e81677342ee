"""Head specification: a head is written as one word."""

from __future__ import annotations

import pytest

from headstart.errors import OptionError
from headstart.training.head_spec import HeadSpec, parse_heads


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("linear", HeadSpec()),
        ("0.2", HeadSpec(dropout=0.2)),
        ("1024-512-0.2", HeadSpec(widths=(1024, 512), dropout=0.2)),
        ("512-.5", HeadSpec(widths=(512,), dropout=0.5)),
        ("conv1280-flatten", HeadSpec(channels=1280)),
        ("conv64-avgmax-32-0.1", HeadSpec(channels=64, pool="avgmax", widths=(32,), dropout=0.1)),
    ],
)
def test_a_head_is_one_word(text: str, spec: HeadSpec) -> None:
    assert HeadSpec.parse(text) == spec
    assert HeadSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    "text",
    [
        "",
        "deep",
        "512-",
        "0.5-512",
        "1.5",
        "0",
        "flatten-512",
        "conv8-median",
        "512-conv8",
        "9" * 5000,
        "conv" + "9" * 5000,
    ],
)
def test_what_cannot_be_read_is_refused_with_examples(text: str) -> None:
    with pytest.raises(OptionError, match="Examples: linear"):
        HeadSpec.parse(text)


def test_a_list_of_heads_is_parsed_without_duplicates() -> None:
    assert parse_heads("linear, 512-0.5,linear") == (HeadSpec(), HeadSpec(widths=(512,), dropout=0.5))
    with pytest.raises(OptionError, match="in separate runs"):
        parse_heads("512,conv8")
