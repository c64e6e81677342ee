"""``headstart report`` and ``push``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import main
from hub import hub_for_tests


@pytest.mark.slow
def test_the_report_is_written_where_it_was_asked_for(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "again.html"
    code, out, err = main("report", run, "--out", file, "--json", capsys=capsys)
    assert code == 0, err
    assert json.loads(out) == {"report": str(file), "bytes": file.stat().st_size}


def test_a_report_of_no_finished_run_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = main("report", tmp_path, capsys=capsys)
    assert (code, "not a run folder" in err) == (1, True)
    code, _, err = main("report", run, "--out", tmp_path / "r.pdf", capsys=capsys)
    assert (code, ".html" in err) == (1, True)
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "run.json").unlink()
    assert main("push", folder, "me/colours", capsys=capsys)[0] == 1


@pytest.mark.slow
def test_push_prints_the_address_of_the_model(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with hub_for_tests(tmp_path / "cache") as hub:
        code, out, err = main("push", run, "me/colours", "--private", "--json", capsys=capsys)
        assert code == 0, err
        assert json.loads(out) == {
            "repository": "me/colours",
            "url": f"{hub.address}/me/colours",
            "model": "hf://me/colours",
        }
        assert hub.private == {"me/colours"}
