"""``headstart label``: options of the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import main

from headstart.progress import TerminalProgress
from headstart.serve.labelling import process


def test_options_reach_the_session(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(process, "label", lambda source, **options: calls.append((source, options)))
    assert main("label", "photographs/", capsys=capsys)[0] == 0
    more = ["--labels", "l.csv", "--corrections", "kept", "--minutes", "2.5", "--port", "8003", "--no-open"]
    more += ["--multi-label", "--backbone", "vgg16", "--seed", "3", "--device", "cpu"]
    assert main("label", "s3://bucket/photographs/", *more, capsys=capsys)[0] == 0
    (first, defaults), (second, given) = calls
    assert (first, second) == ("photographs/", "s3://bucket/photographs/")
    assert isinstance(defaults.pop("progress"), TerminalProgress)
    assert isinstance(given.pop("progress"), TerminalProgress)
    assert defaults == {
        "labels": None,
        "corrections": None,
        "port": 0,
        "backbone": "auto",
        "multi_label": False,
        "seed": 0,
        "device": "auto",
        "train_options": (),
        "open_browser": True,
    }
    assert given == {
        "labels": Path("l.csv"),
        "corrections": Path("kept"),
        "port": 8003,
        "backbone": "vgg16",
        "multi_label": True,
        "seed": 3,
        "device": "cpu",
        "train_options": ("--minutes", "2.5"),
        "open_browser": False,
    }


def test_a_port_in_use_is_an_error_that_names_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from headstart.serve.listener import listen

    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        status, _, said = main("label", tmp_path, "--port", port, "--no-open", capsys=capsys)
    assert status == 1
    assert f"127.0.0.1:{port}" in said
    assert "--host" not in said
