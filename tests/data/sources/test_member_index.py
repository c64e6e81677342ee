"""The index of an archive in arrays gives what a dictionary gives."""

from __future__ import annotations

import random

import pytest

from headstart.data.sources import member_index
from headstart.data.sources.member_index import MemberIndex, MemberNames, MemberTexts

NAMES = ["", "a", "b/ä.jpg", "x" * 300, "broken\udce4", "a/1.jpg", "図.png"]


def test_names_are_kept_in_their_order() -> None:
    names = MemberNames(NAMES)
    assert list(names) == NAMES
    assert [names[i] for i in range(-len(NAMES), len(NAMES))] == NAMES * 2
    assert names[1:4] == NAMES[1:4]
    assert len(names) == len(NAMES)
    with pytest.raises(IndexError):
        names[len(NAMES)]
    assert list(MemberNames([])) == []


def test_numbers_are_found_by_name() -> None:
    members = {name: (i, 1 << 40) for i, name in enumerate(random.Random(0).sample(range(10**6), 2000))}
    members = {f"{name}.jpg": numbers for name, numbers in members.items()}
    index = MemberIndex(members)
    assert dict(index) == members
    assert list(index) == list(members)
    assert "other.jpg" not in index
    assert index.get("other.jpg") is None
    assert not MemberIndex({})


def test_names_of_equal_hash_are_not_confused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member_index, "_hash", lambda name: len(name) % 2)
    members = {name: (i,) for i, name in enumerate(NAMES)}
    index = MemberIndex(members)
    assert dict(index) == members
    assert "other" not in index


def test_texts_are_found_by_name() -> None:
    texts = {"a.cls": b"rose", "b.cls": b"", "c.json": b"{}"}
    assert dict(MemberTexts(texts)) == texts
    assert dict(MemberTexts({})) == {}
