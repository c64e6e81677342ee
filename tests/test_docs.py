"""Documents: every command, Python block and docstring example runs, and every named option and link exists."""

from __future__ import annotations

import copy
import csv
import hashlib
import importlib.util
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from doctest import DocTest
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import timm
import torch
from commands import all_commands
from docstring_examples import examples_of, failure_of, has_example, public_examples
from documents import DOCUMENTS, PAGES, ROOT, Block, Reader, blocks_of
from hub import hub_for_tests
from random_images import random_image, write_classes, write_mixtures
from shared import shared_folder
from small_architectures import SMALL, small_architectures

import headstart as hs
from headstart.backbone.weights import fingerprint
from headstart.exports import graph as export_graph
from headstart.exports import reader_process, subprocess_runner
from headstart.exports.formats import onnx as onnx_format
from headstart.exports.formats.registry import format_of
from headstart.exports.metadata import ExportMetadata
from headstart.model import Model
from headstart.pipeline import evaluate
from headstart.progress import Progress
from headstart.selection import search
from headstart.serve.corrections import Corrections
from headstart.training import classical, extend, ladder, probe
from headstart.training import fit_head as classifiers
from headstart.training.head_search import HeadSearchSettings
from headstart.trust import label_errors
from headstart.verbs import compare

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

NOT_RUN = {
    ("deploy.md", "podman build"): "needs an image from a registry",
    ("deploy.md", "pip install packages"): "pip and Docker: test_package.py builds the wheel and runs it",
    ("export.md", "import { load }"): "a module for browsers: test_web.py runs it in one",
    ("first-model.md", "flowers/"): "names of folders: any folder of images, as the other pages use it",
    (
        "web-page.md",
        "runs/flowers-corrections/",
    ): "names of files: test_corrections.py and test_app.py see them written",
    ("web-page.md", "val accuracy: before"): "what retrain prints: test_retrain.py compares its words",
    (
        "phone.md",
        "headstart export runs/flowers --to litert",
    ): "converters that are not installed: test_isolated_formats.py runs them",
    ("scale.md", "#!/bin/bash"): "a Slurm script: test_scale_page.py runs it",
    ("scale.md", "apiVersion"): "a Kubernetes job: test_scale_page.py runs its command",
    ("serve.md", "{"): "what the server answers: its keys are compared with a real answer, here",
    ("serve.md", '{"time": "2026'): "a line of the log: test_app.py compares its keys with a real one",
}
"""Blocks that nothing here runs, by page and beginning, and why not."""


COLOURS = {"roses": (150, 90, 90), "tulips": (90, 90, 90), "rose": (220, 90, 90), "tulip": (80, 90, 100)}
"""Colours of the images, by class or by name; the last two are easy to classify."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The data and the runs that the documents name, small: 64 pixels, networks of the same layers' names."""
    folder = tmp_path_factory.mktemp("library")
    with small_architectures(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(ladder, "LEAST_STEPS", 1)  # small data are shown for fewer epochs
        patch.setattr(search, "_combinations", lambda *_: [])  # tests/selection tests the choice
        patch.setattr(HeadSearchSettings, "epochs", 2)
        patch.setattr(classifiers, "EPOCHS_OF_VIEWS", 2)
        patch.setattr(extend, "PENALTIES", extend.PENALTIES[1:])
        patch.setattr(extend, "ROUNDS", 20)
        for module in (evaluate, label_errors, probe, classical):
            patch.setattr(module, "PROBE_FOLDS" if module is evaluate else "FOLDS", 2)
        patch.setattr(export_graph, "capture", _once_a_model(export_graph.capture))
        patch.setattr(onnx_format, "onnx_graph", _once_a_session(onnx_format.onnx_graph, tmp_path_factory))
        for module in (subprocess_runner, importlib.import_module("headstart.verbs.export")):
            patch.setattr(module, "open_export", OpenedHere)
        table = importlib.import_module("headstart.verbs.export_table")  # the other formats take minutes
        patch.setattr(table, "FORMATS", {name: table.FORMATS[name] for name in ("onnx", "torch")})
        patch.setenv("HEADSTART_CACHE", str(folder / "cache"))
        _write_data(folder)
        run = hs.train(folder / "flowers", out=folder / "runs" / "flowers")
        for name in ("probe", "tuned"):
            shutil.copytree(run.folder, folder / "runs" / name)
        shutil.copytree(run.folder, folder / "runs" / "interrupted")
        (folder / "runs" / "interrupted" / "run.json").unlink()
        shutil.copy(run.model_path, folder / "model.safetensors")
        kept = Corrections(folder / "runs" / "flowers-corrections")
        kept.keep((folder / "wasp.jpg").read_bytes(), "roses")
        kept.keep(next((folder / "flowers" / "tulips").glob("*.jpg")).read_bytes(), "roses")
        shutil.copytree(kept.folder, folder / "photographs-run-corrections")
        yield folder


def _key(model: Model) -> str:
    """Of what an exporter reads of a model."""
    return fingerprint(model.net.state_dict() | model.head.state_dict()) + repr(model.calibration)


def _once_a_model(capture: Callable[[Model], Any]) -> Callable[[Model], Any]:
    """The exporter takes seconds: for equal weights, once."""
    held: dict[str, Any] = {}

    def captured(model: Model) -> Any:
        if _key(model) not in held:
            held[_key(model)] = capture(model)
        return copy.deepcopy(held[_key(model)])

    return captured


def _once_a_session(
    convert: Callable[[Model], onnx.ModelProto], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Model], onnx.ModelProto]:
    """The same for ONNX, whose conversion takes longest, in all processes of a test session."""

    def converted(model: Model) -> onnx.ModelProto:
        name = f"onnx-{hashlib.sha256(_key(model).encode()).hexdigest()[:16]}"
        folder = shared_folder(tmp_path_factory, name, lambda own: onnx.save(convert(model), str(own / "graph.onnx")))
        return onnx.load(str(folder / "graph.onnx"))

    return converted


class OpenedHere:
    """``OpenedExport`` in this process, which starts none; tests/exports tests the separate process."""

    seconds = 0.1

    def __init__(self, file: Path, progress: Progress | None = None) -> None:
        spec = importlib.util.spec_from_file_location("reader", reader_process.READERS / format_of(file).reader)
        assert spec is not None
        assert spec.loader is not None
        reader = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(reader)
        text, self.run = reader.open_file(str(file))
        self.metadata = ExportMetadata.read(text, file)

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
        found: list[npt.NDArray[np.float32]] = self.run(pixels)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _write_data(folder: Path) -> None:
    write_classes(folder / "flowers", {"roses": 40, "tulips": 40})
    for number, path in enumerate(sorted((folder / "flowers").glob("*/*.png"))):
        random_image(number, COLOURS[path.parent.name]).save(path.with_suffix(".jpg"))
        path.unlink()
    shutil.copytree(folder / "flowers", folder / "images")
    write_classes(folder / "FOLDER", {"roses": 12, "tulips": 12}, first_seed=900)
    for part, count in (("train", 8), ("val", 4)):
        write_classes(folder / "your-folder" / part, {"roses": count, "tulips": count}, first_seed=600 + 20 * count)
    write_classes(folder / "orchids", {"orchids": 20}, first_seed=700)
    (folder / "photographs").mkdir()
    for number in range(48):
        name = ("roses", "tulips")[number % 2]
        random_image(1000 + number, COLOURS[name]).save(folder / "photographs" / f"{name}-{number:02d}.jpg")
    for number, name in enumerate(("rose", "tulip", "blurred", "lunch", "photo", "wasp")):
        random_image(500 + number, COLOURS.get(name, (120, 120, 120))).save(folder / f"{name}.jpg")
    _write_table(
        folder / "beaches.csv",
        ["path", "labels"],
        [
            [f"beaches/{name}", "|".join(shown)]
            for name, shown in write_mixtures(folder / "beaches", 60, first_seed=800)
        ],
    )
    rows = [
        [f"flowers/{path.parent.name}/{path.stem}", path.parent.name] for path in (folder / "flowers").glob("*/*.jpg")
    ]
    _write_table(folder / "plants.csv", ["Datei", "Art"], sorted(rows))
    names = sorted(str(path.relative_to(folder / "flowers")) for path in (folder / "flowers").glob("*/*.jpg"))
    _write_table(
        folder / "flowers" / "val-table.csv", ["path", "label"], [[own, own.partition("/")[0]] for own in names]
    )
    for name in SMALL:
        torch.save(timm.create_model(name).state_dict(), folder / f"{name}.pth")


def _write_table(file: Path, header: list[str], rows: list[list[str]]) -> None:
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([header, *rows])


@pytest.fixture
def reader(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Reader]:
    """In a folder of their own that holds what the documents name."""
    place = tmp_path / "place"
    shutil.copytree(library, place, ignore=shutil.ignore_patterns("cache"))
    monkeypatch.chdir(place)
    monkeypatch.delenv("DISPLAY", raising=False)
    with hub_for_tests(tmp_path / "hub"):
        yield Reader(place, capsys)


@pytest.mark.parametrize("name", hs.__all__)
def test_every_public_name_has_an_example(name: str) -> None:
    assert has_example(getattr(hs, name).__doc__)


@pytest.mark.parametrize("example", public_examples(), ids=lambda example: example.name)
def test_an_example_in_a_docstring_runs_as_shown(
    example: DocTest, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "CLASSICAL", ())  # one run instead of five
    assert failure_of(example) == ""


@pytest.mark.parametrize(
    "docstring",
    [
        None,
        "Adds.",
        "Adds.\n\nExamples:\n    Call it with two numbers.\n",
        "Adds.\n\n    >>> 1 + 1\n    2\n",
        "Adds.\n\nExamples:\n    >>> serve()  # doctest: +SKIP\n",
    ],
)
def test_a_missing_example_is_found(docstring: str | None) -> None:
    assert not has_example(docstring)
    assert has_example("Adds.\n\nExamples:\n    >>> 1 + 1\n    2\n")


@pytest.mark.parametrize(
    ("statement", "output", "is_right"),
    [
        ("1 + 1", "2", True),
        ("1.5", "2", True),  # numbers depend on the data
        ("'roses'", "'roses'", True),
        ("'roses'", "'tulips'", False),
        ("'roses'", "", False),
        ("nothing", "", False),
        ("hs.no_such_name", "", False),
    ],
)
def test_a_failing_example_is_found(statement: str, output: str, is_right: bool) -> None:
    def documented() -> None: ...

    documented.__doc__ = f"Adds.\n\nExamples:\n    >>> {statement}\n    {output}\n"
    (test,) = examples_of(documented, "documented")
    assert (failure_of(test) == "") is is_right


def _clear_what_the_page_makes(page: Path, place: Path) -> None:
    for made in re.findall(r"--out (runs/[\w-]+)", page.read_text()):
        shutil.rmtree(place / made, ignore_errors=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_shows_as_code_works(page: Path, reader: Reader) -> None:
    if "hf://" in page.read_text():
        hs.push("runs/flowers", "OWNER/NAME")
    _clear_what_the_page_makes(page, reader.folder)
    reader.read(page)
    if page == ROOT / "README.md":
        assert re.search(r"^accuracy [01]\.\d+ \(", reader.said, re.MULTILINE)
    if page.name == "serve.md":
        (reply,), (shown,) = reader.replies, [own for own in blocks_of(page) if own.text.startswith("{\n")]
        assert _keys(reply) == _keys(json.loads(shown.text))


def _keys(document: object) -> object:
    """Names only, of a list those of its first entry."""
    if isinstance(document, dict):
        return {name: _keys(value) for name, value in document.items()}
    return _keys(document[0]) if isinstance(document, list) and document else None


def test_every_block_is_run_or_listed_with_the_reason() -> None:
    still = [own for page in PAGES for own in blocks_of(page) if own.language not in ("sh", "python")]
    listed = {key: [own for own in still if _listed(own, key)] for key in NOT_RUN}
    assert not [own.where for own in still if not any(own in found for found in listed.values())]
    assert not [key for key, found in listed.items() if len(found) != 1]


def _listed(block: Block, key: tuple[str, str]) -> bool:
    return block.page.name == key[0] and block.text.startswith(key[1]) and (key[1] != "{" or block.text[1] == "\n")


PAGE = """# A page

```python
answer = 6 * 7
```

Words, and a list:

- `headstart check`
    that goes on here.

    $ headstart cache --json
    {}

In Python:

    assert answer == 42

```sh
headstart cache   # again
```
"""


def test_blocks_of_every_kind_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    found = [(own.language, own.line, own.commands) for own in blocks_of(page)]
    assert found == [
        ("python", 3, ["answer = 6 * 7"]),
        ("sh", 12, ["headstart cache --json"]),
        ("python", 17, ["assert answer == 42"]),
        ("sh", 19, ["headstart cache   # again"]),
    ]


def test_a_page_that_is_right_passes(tmp_path: Path, reader: Reader) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    reader.read(page)
    assert "{" in reader.said


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("cache --json", "layers no_such_network"),
        ("cache  ", "cache --no-such-option"),
        ("headstart cache  ", "other-program cache"),
        ("== 42", "== 43"),
        ("answer = 6", "answer = nothing"),
    ],
)
def test_a_page_with_a_command_that_fails_fails(right: str, wrong: str, tmp_path: Path, reader: Reader) -> None:
    page = tmp_path / "page.md"
    assert right in PAGE
    page.write_text(PAGE.replace(right, wrong))
    with pytest.raises((AssertionError, NameError)):
        reader.read(page)


def options() -> set[str]:
    parameters = [parameter for command in all_commands().values() for parameter in command.params]
    return {name for p in parameters for name in (*p.opts, *p.secondary_opts)} | {"--help", "--version"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_and_names_of_a_page_exist(page: Path) -> None:
    text = page.read_text()
    code = " ".join(_spans(text))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", code)) <= options()
    named = {name for name in re.findall(r"\bhs\.(\w+)", text) if name != "md"}
    assert named <= set(hs.__all__)


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^\]\n]+\]: *(\S+)$|\b(?:href|src)=\"([^\"]+)\"", re.MULTILINE)
"""A link in Markdown, the target of a reference, or one in HTML."""


def broken_links(page: Path) -> list[str]:
    """Links to files that are not there, or to headings that they do not have."""
    broken = []
    for found in LINK.finditer(page.read_text()):
        link = found[1] or found[2] or found[3]
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (heading and heading not in _anchors(target.read_text())):
            broken.append(link)
    return broken


def _anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", own.lower()).replace(" ", "-") for own in headings}


def test_links_that_lead_nowhere_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    (tmp_path / "b.md").write_text("# What is `right`, and why?\n")
    page.write_text(
        "# Own\n[1](b.md) [2](b.md#what-is-right-and-why) [3](#own) [4](https://example.com/x) "
        "[5](c.md) [6](b.md#gone) [7](#gone) ![8](c.png)\n\n"
        '[9]\n\n[9]: d.md\n\n<a href="e.md">10</a>'
    )
    assert broken_links(page) == ["c.md", "b.md#gone", "#gone", "c.png", "d.md", "e.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_command_within_a_sentence_is_one_that_the_command_line_takes(page: Path) -> None:
    for span in _spans(page.read_text()):
        program, *words = span.split(maxsplit=1)
        if program == "headstart" and words:
            verb, *words = shlex.split(words[0])
            assert _takes(verb, words), span


def _spans(text: str) -> list[str]:
    """Code within sentences."""
    return re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def _takes(verb: str, words: list[str]) -> bool:
    """Whether the command line would begin with it; a verb alone names the command."""
    if verb.startswith("-"):
        return verb in options()
    command = all_commands().get(verb)
    if command is None or not words:
        return command is not None
    plain = [own for own in (word.strip("[]") for word in words) if own not in ("|", "...")]
    numbers = [
        "1" if own.isupper() and before.startswith("--") else own
        for before, own in zip(["", *plain], plain, strict=False)
    ]
    try:
        command.make_context(verb, numbers, resilient_parsing=False)
    except Exception as error:  # of click or of the package: no common class
        return type(error).__name__ == "MissingParameter"
    return True


@pytest.mark.parametrize(
    ("span", "taken"),
    [
        ("train --resume RUN", True),
        ("watch RUN --port 8001", True),
        ("check", True),
        ("compare DATA --only depths", True),
        ("no-such-verb", False),
        ("check DATA --no-such-option", False),
        ("train DATA --epochs few", False),
    ],
)
def test_what_the_command_line_would_not_take_is_seen(span: str, taken: bool) -> None:
    verb, *words = span.split()
    assert _takes(verb, words) is taken


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_has_its_page(example: Path) -> None:
    pages = "".join(page.read_text() for page in PAGES)
    if example.name != "side_by_side.py":
        assert f"examples/{example.name}" in pages
    for page in re.findall(r"docs/[\w/-]+\.md", example.read_text()):
        assert (ROOT / page).exists(), page
