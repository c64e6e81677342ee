"""Every format of a model in one table, with what was refused and why; also in the report of the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import main
from small_models import small_model, write_shown

import headstart as hs
from headstart.errors import ExportError, OptionError
from headstart.exports.formats.interface import ExportFormat, WriteRequest, WrittenFiles
from headstart.extras import EXTRAS
from headstart.verbs.export_table import ExportRow, ExportTable, export_all


def refuse(request: WriteRequest) -> WrittenFiles:
    raise ExportError(f"the {request.variant or 'float32'} model | cannot be expressed")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_shown(tmp_path / "images", 12)


def test_what_cannot_be_written_has_a_row_with_the_reason(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ExportFormat("one", ".one", refuse, "onnx_reader.py", variants=("int8",))
    two = ExportFormat("two", ".two", refuse, "onnx_reader.py", extra="absent")
    for module in ("headstart.verbs.export", "headstart.verbs.export_table"):
        monkeypatch.setattr(f"{module}.FORMATS", {"one": one, "two": two})
    monkeypatch.setitem(EXTRAS, "absent", ("a_module_that_is_not_there",))
    table = export_all(small_model(), out=tmp_path / "out", data=images)
    assert [row.name for row in table.rows] == ["model", "one", "one int8", "two"]
    assert [row.result is None for row in table.rows] == [False, True, True, True]
    assert "the int8 model | cannot be expressed" in table.rows[2].reason
    assert 'pip install "headstart[absent]"' in table.rows[3].reason
    content = (tmp_path / "out" / "exports.json").read_text()
    assert str(tmp_path) not in content
    document = json.loads(content)
    assert document["images"] == "6 images, images"
    assert document["rows"][0]["result"]["images"] == 6  # the others calibrate
    text = (tmp_path / "out" / "exports.md").read_text()
    assert "the int8 model \\| cannot be expressed" in text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["exports.json", "exports.md"]


def test_a_model_without_a_run_needs_a_folder(images: Path) -> None:
    with pytest.raises(OptionError, match=r"Give the folder to write \(option out\)"):
        export_all(small_model(), data=images)


def test_rows_without_a_file_are_as_wide_as_the_header() -> None:
    assert len(ExportRow("one", None, None, "no").cells()) == len(ExportTable.HEADER)


@pytest.mark.exhaustive
def test_the_command_writes_every_format_and_the_report(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = hs.train(images, out=tmp_path / "run", effort="probe", device="cpu").folder
    status, out, err = main("export", run, "--all", capsys=capsys)
    assert status == 0, err
    for name in ("model", "onnx", "onnx int8", "torch"):
        assert any(line.startswith(f"{name} ") for line in out.splitlines()), out
    assert (run / "exports" / "model.onnx").is_file()
    assert (run / "exports" / "model.pt2").is_file()
    assert 'id="exports"' in (run / "report.html").read_text()
    status, _, err = main("export", run, "--all", "--to", "onnx", capsys=capsys)
    assert status == 2
    assert "--to: --all writes every format and variant. Leave one out." in err
