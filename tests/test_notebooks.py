"""Every tutorial page has a notebook with the same code, and the notebooks run in a real kernel."""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT, blocks_of
from random_images import write_classes

GENERATOR: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "generate_notebooks.py"))
PAGES: list[Path] = GENERATOR["PAGES"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_notebook_is_in_step_with_its_page(page: Path) -> None:
    """The page's code is executed by tests/test_docs.py."""
    notebook = GENERATOR["notebook_of"](page)
    assert notebook.read_text() == GENERATOR["text_of"](page), "run python scripts/generate_notebooks.py"
    cells = json.loads(notebook.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code == [block.text for block in blocks_of(page) if block.language == "python"]
    assert all(not cell.get("outputs") for cell in cells)


def test_no_notebook_is_left_over() -> None:
    notebooks = {path.stem for path in (ROOT / "docs" / "notebooks").glob("*.ipynb")}
    assert notebooks == {page.stem for page in PAGES} >= {"demo"}


@pytest.mark.exhaustive
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_notebook_runs_in_a_kernel(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    for part, count in (("train", 8), ("val", 4)):
        write_classes(tmp_path / "your-folder" / part, {"roses": count, "tulips": count}, first_seed=20 * count)
    notebook = nbformat.read(GENERATOR["notebook_of"](page), as_version=4)
    nbformat.validate(notebook)
    client = nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    printed = [out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", [])]
    assert any("accuracy" in text for text in printed) or page.stem == "foods"
