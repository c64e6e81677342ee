"""The shape of the package: one direction of imports, a small public surface, nothing at import."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from random_images import random_image, write_classes
from small_architectures import small_architectures
from small_models import small_model
from traced_calls import Recognise, ValueCall, traced_calls

import headstart as hs
from headstart.cache.keys import content_key
from headstart.data.decode import decode
from headstart.data.scan import scan

PACKAGE = Path(hs.__file__).parent

ORDER = [
    "import_effects",
    "errors",
    "figures",
    "extras",
    "concurrency",
    "files",
    "progress",
    "prediction",
    "data.tiff",
    "data.bit_depth",
    "data.heif",
    "data.jpeg",
    "data.image_formats",
    "data.preprocessing",
    "data.rgb",
    "data.image_source",
    "data.label_cells",
    "data.sources.local_file",
    "exports.metadata",
    "engine.onnx_runtime",
    "evaluation.tables",
    "serve.limits",
    "serve.errors",
    "serve.access",
    "serve.listener",
    "serve.multipart",
    "serve.request_log",
    "serve.responses",
    "runtime.local_images",
    "runtime.onnx_file",
    "runtime.onnx_model",
    "runtime.server",
    "runtime.command",
    "deferred_compiler",
    "lazy",
    "quiet",
    "file_lock",
    "html",
    "hub",
    "cache.keys",
    "cache.sealed_document",
    "cache.store_files",
    "cache.entries",
    "cache.budget",
    "cache.verify",
    "isolated_environment",
    "cache.row_store",
    "cache.computed",
    "cache.joined_rows",
    "training.option",
    "training.head_spec",
    "training.former_options",
    "training.recipe_rules",
    "training.recipe_properties",
    "training.recipe",
    "training.recipe_options",
    "data.sources.addresses",
    "data.finding",
    "data.sources.interface",
    "data.sources.local",
    "data.sources.remote",
    "data.sources.stores",
    "data.sources.member_index",
    "data.sources.tar_file",
    "data.sources.zip_file",
    "data.sources.row_cache",
    "data.sources.parquet_file",
    "data.sources.containers",
    "data.sources.read",
    "data.decode",
    "data.natural_order",
    "data.class_labels",
    "data.table_file",
    "data.table_paths",
    "data.table_columns",
    "data.image_table",
    "data.table_labels",
    "data.table",
    "data.file_tree",
    "data.class_folders",
    "data.webdataset",
    "data.shards",
    "data.listing",
    "data.streamed_dataset",
    "data.augment",
    "data.perceptual_hash",
    "data.pixel_cache",
    "data.fingerprint",
    "data.scan",
    "data.hamming",
    "data.quality",
    "data.duplicates",
    "data.dataset",
    "data.image_inputs",
    "data.splits",
    "data.checks",
    "data.inspection",
    "engine.torch_internals",
    "backbone.side_by_side",
    "backbone.names",
    "backbone.timm_layers",
    "backbone.weight_files",
    "backbone.offline_packages",
    "backbone.licenses",
    "backbone.hub_weights",
    "backbone.weights",
    "backbone.layers",
    "backbone.pooling",
    "backbone.feature_spec",
    "backbone.shapes",
    "backbone.compute_cost",
    "backbone.tracing",
    "backbone.cut_graphs",
    "backbone.split",
    "engine.device",
    "engine.depthwise",
    "engine.conv_bn_fusion",
    "backbone.pixel_net",
    "engine.onnx_graph",
    "engine.onnx_array_operations",
    "engine.onnx_layer_operations",
    "engine.onnx_lowering",
    "backbone.batchnorm_prior",
    "engine.interface",
    "engine.torch_engine",
    "engine.onnx_engine",
    "engine.streaming",
    "engine.plan",
    "engine.agreement",
    "engine.candidates",
    "engine.measure",
    "engine.select",
    "features.extract",
    "features.activations",
    "features.export",
    "training.losses",
    "trust.thresholds",
    "trust.temperature",
    "trust.calibration",
    "trust.ood",
    "training.custom_heads",
    "training.heads",
    "training.linear_fits",
    "training.penalty",
    "training.probe",
    "training.streamed_probe",
    "trust.label_errors",
    "trust.feature_findings",
    "training.classical",
    "training.feature_augment",
    "features.prefetch",
    "training.ema",
    "training.cuda_graph",
    "training.frozen_proof",
    "training.sampling",
    "training.schedule",
    "training.lora",
    "training.tuning",
    "training.suffix_classifier",
    "training.suffix_evaluation",
    "training.ranks",
    "training.trained_weights",
    "training.training_step",
    "training.finetune",
    "training.extend",
    "training.head_search",
    "training.fit_head",
    "training.out_of_fold",
    "training.ladder",
    "training.checkpoint",
    "predictor",
    "model_schema",
    "model_file",
    "model",
    "loading",
    "evaluation.metrics",
    "evaluation.predictions",
    "evaluation.comparison",
    "distributed.shards",
    "distributed.shard_tables",
    "distributed.work",
    "distributed.pending",
    "distributed.processes",
    "distributed.ray_cluster",
    "distributed.rank_group",
    "distributed.compute",
    "distributed.bulk",
    "distributed.sharded_features",
    "distributed.shard_findings",
    "distributed.fit_probe",
    "selection.candidates",
    "selection.results",
    "selection.time_limit",
    "evaluation.reliability",
    "evaluation.mcnemar",
    "reports.svg_chart",
    "reports.curves",
    "reports.calibration_chart",
    "reports.comparison_chart",
    "reports.image_map",
    "reports.gradcam",
    "reports.shown_images",
    "reports.contact_sheets",
    "reports.model_card",
    "reports.report_page",
    "reports.finding_galleries",
    "reports.check_report",
    "reports.report_data",
    "reports.mistakes",
    "reports.confusion",
    "reports.map_drawing",
    "reports.run_report",
    "exports.resize",
    "exports.readers.answer_frames",
    "exports.readers.onnx_reader",
    "exports.readers.torch_reader",
    "exports.readers.timm_reader",
    "exports.readers.pillow_fit",
    "exports.readers.litert_reader",
    "exports.readers.coreml_reader",
    "exports.readers.executorch_reader",
    "exports.converters.litert_converter",
    "exports.converters.coreml_converter",
    "exports.converters.executorch_converter",
    "exports.readers.openvino_reader",
    "exports.reader_process",
    "exports.snippets",
    "exports.phone_snippets",
    "exports.graph",
    "exports.linear_classifier",
    "exports.timm_card",
    "exports.space",
    "exports.readers.web_reader",
    "exports.gpu_graphs",
    "exports.onnxruntime_web",
    "exports.decoded_images",
    "exports.formats.interface",
    "exports.destination",
    "exports.formats.int8",
    "exports.formats.onnx",
    "exports.formats.openvino_model",
    "exports.formats.openvino_int8",
    "exports.formats.openvino",
    "exports.formats.torch_export",
    "exports.formats.web",
    "exports.formats.timm",
    "exports.formats.fitted",
    "exports.formats.litert",
    "exports.formats.coreml",
    "exports.formats.executorch",
    "exports.formats.registry",
    "exports.subprocess_runner",
    "exports.parity",
    "runs.events",
    "runs.log",
    "runs.tensorboard",
    "runs.status",
    "runs.time_estimate",
    "runs.environment",
    "runs.folder",
    "runs.results",
    "runs.test_set_audit",
    "verbs.report",
    "selection.search",
    "pipeline.load",
    "pipeline.inspect_images",
    "pipeline.plan",
    "pipeline.featurise",
    "pipeline.fit",
    "pipeline.choose_layers",
    "pipeline.evaluate",
    "pipeline.rung_activations",
    "pipeline.data_parallel",
    "pipeline.trained_layers",
    "pipeline.ladder_state",
    "pipeline.train_rung",
    "pipeline.fine_tune",
    "pipeline.base_classifier",
    "pipeline.extend",
    "verbs.check",
    "pipeline.custom_loop",
    "pipeline.prove_frozen",
    "pipeline.write",
    "pipeline.run_setup",
    "pipeline.choose_depth",
    "pipeline.choose_recipe",
    "pipeline.train",
    "pipeline.resume",
    "pipeline.train_events",
    "verbs.compare",
    "verbs.evaluate",
    "verbs.compare_models",
    "verbs.export_images",
    "verbs.export",
    "verbs.export_table",
    "verbs.gradio_space",
    "verbs.push",
    "labelling.label_state",
    "labelling.journal",
    "labelling.label_files",
    "labelling.label_table",
    "labelling.image_list",
    "labelling.stacks",
    "labelling.frozen_pass",
    "labelling.added_images",
    "labelling.blind_sample",
    "labelling.vectors",
    "labelling.clusters",
    "labelling.learner",
    "labelling.queues",
    "labelling.knowledge",
    "labelling.actions",
    "labelling.label_import",
    "labelling.label_export",
    "labelling.run_doubts",
    "labelling.learning",
    "labelling.views",
    "labelling.overview",
    "labelling.session",
    "serve.prometheus",
    "serve.middleware",
    "serve.decode_budget",
    "serve.batching",
    "serve.schemas",
    "serve.static_files",
    "serve.corrections",
    "verbs.retrain",
    "serve.neighbours",
    "serve.page",
    "serve.watch.run_reader",
    "serve.watch.views",
    "serve.app",
    "serve.connections",
    "serve.uvicorn_server",
    "serve.server",
    "serve.watch.process",
    "serve.labelling.training_process",
    "serve.labelling.trial",
    "serve.labelling.events",
    "serve.labelling.backend",
    "serve.labelling.routes",
    "serve.labelling.process",
    "estimators",
    "demo",
    "cli.process_settings",
    "cli.render",
    "cli.options",
    "cli.train",
    "cli.label",
    "cli.check",
    "cli.features",
    "cli.predict",
    "cli.serve",
    "cli.compare",
    "cli.export",
    "cli.publish",
    "cli.cache",
    "cli.main",
]


LAST_OF_RUNTIME = "runtime.command"
"""The modules up to this one are the distribution ``headstart-runtime``; they import each other relatively."""


def modules() -> dict[str, Path]:
    found = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}
    return {name: path for name, path in found.items() if not name.endswith(("__init__", "__main__"))}


def imported_modules(name: str, source: str) -> set[str]:
    """Modules of the package that the source of a module imports, by whatever form, at its top or inside a function.

    Public names that are taken from ``headstart`` itself count as the module that they come from.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{_absolute(name, node)}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("import_module", "__import__", "import_quietly")
        ):
            found |= {ast.literal_eval(own) for own in node.args[:1] if isinstance(own, ast.Constant)}
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("headstart", "hs")
        ):
            found.add(f"headstart.{node.attr}")
    return {home for name in found if name.startswith("headstart.") and (home := _home_of(name))}


def _absolute(name: str, node: ast.ImportFrom) -> str:
    """The module that an import names; ``name`` is the importing module."""
    if not node.level:
        return node.module or ""
    folder = ["headstart", *name.split(".")][: -node.level]
    return ".".join([*folder, *filter(None, [node.module])])


def _home_of(name: str) -> str:
    """The module in which a dotted name below ``headstart`` lies; "" for a package itself.

    A name that a package exports lazily counts as the module that defines it.
    """
    package, _, last = name.rpartition(".")
    modules = getattr(importlib.import_module(package), "_MODULES", {}) if _is_package(package) else {}
    dotted = modules.get(last, name).removeprefix("headstart.")
    while dotted and dotted not in ORDER:
        dotted = dotted.rpartition(".")[0]
    return dotted


def _is_package(name: str) -> bool:
    return (PACKAGE.parent / name.replace(".", "/") / "__init__.py").is_file()


def upward_imports(name: str, source: str) -> list[str]:
    """Modules that a module imports although they come after it in the flow."""
    return sorted(home for home in imported_modules(name, source) if ORDER.index(home) >= ORDER.index(name))


def test_a_module_imports_only_what_stands_before_it_in_the_flow() -> None:
    assert sorted(modules()) == sorted(ORDER)
    upward = {name: upward_imports(name, path.read_text()) for name, path in modules().items()}
    assert {name: found for name, found in upward.items() if found} == {}


@pytest.mark.parametrize(
    "statement",
    [
        "import headstart.serve.app",
        "import headstart.serve.app as app",
        "from headstart.serve.app import create",
        "from headstart.serve import app",
        "def late():\n    from headstart.serve import app",
        "import headstart as hs\nhs.retrain()",
        "import headstart\nheadstart.retrain()",
        "from headstart.serve import create_app",
        "import importlib\nimportlib.import_module('headstart.serve.app')",
        "import_quietly('headstart.serve.app')",
        "from ..serve import app",
        "from ..serve.app import create",
    ],
)
def test_an_import_against_the_flow_is_seen_whatever_its_form(statement: str) -> None:
    assert upward_imports("data.scan", statement)
    assert upward_imports("cli.main", statement) == []


def wrong_levels(name: str, source: str) -> list[str]:
    """Imports of the package that are not relative in the runtime, or not absolute elsewhere."""
    in_runtime = ORDER.index(name) <= ORDER.index(LAST_OF_RUNTIME)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    ours = [node for node in nodes if "headstart" in ast.unparse(node) or getattr(node, "level", 0)]
    return [ast.unparse(node) for node in ours if bool(getattr(node, "level", 0)) is not in_runtime]


def test_imports_are_relative_in_the_runtime_and_absolute_elsewhere() -> None:
    """The same files are imported as ``headstart`` and as ``headstart_runtime``."""
    wrong = {name: wrong_levels(name, path.read_text()) for name, path in modules().items()}
    assert {name: found for name, found in wrong.items() if found} == {}
    assert wrong_levels("files", "from headstart.errors import DataError")
    assert wrong_levels("files", "import headstart.errors")
    assert wrong_levels("data.scan", "from ..errors import DataError")


def data_of(folder: Path) -> Recognise:
    """Recognises the path of a folder, an open data set, and the content of each file in the folder."""
    contents = {file.read_bytes() for file in folder.rglob("*.png")}

    def recognise(argument: object) -> str:
        if isinstance(argument, (str, os.PathLike)):
            return "folder" if os.fspath(argument) == str(folder) else ""
        if isinstance(argument, bytes):
            return "bytes" if argument in contents else ""
        return "data set" if isinstance(argument, hs.Dataset) else ""

    return recognise


def upward_calls(calls: Iterable[ValueCall]) -> list[tuple[str, str]]:
    """Caller and callee where a module hands a value to one that comes after it in the flow."""
    return [(c.caller, c.callee) for c in calls if c.caller and ORDER.index(c.callee) > ORDER.index(c.caller)]


PARSE = ("data.sources.addresses",)
"""Modules that parse a path or URL, and read nothing."""


def modules_entered_twice(calls: Iterable[ValueCall]) -> list[str]:
    """Modules that read the data, and that two modules hand the same folder or content to."""
    callers: dict[tuple[str, str], set[str]] = {}
    for call in calls:
        reads = call.callee.startswith(("data.", "cache.", "backbone.", "engine.", "features."))
        if reads and call.callee not in PARSE and call.value in ("folder", "bytes"):
            callers.setdefault((call.value, call.callee), set()).add(call.caller)
    return [callee for (_, callee), found in callers.items() if len(found) > 1]


@pytest.mark.slow
def test_in_a_run_the_folder_and_the_images_go_down_the_flow_and_enter_no_module_twice(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", {"blue": 8, "red": 8})
    with small_architectures(), traced_calls(data_of(data)) as calls:
        hs.train(data, out=tmp_path / "run", cache=tmp_path / "cache", device="cpu", effort="probe", image_size=32)
    assert upward_calls(calls) == []
    learning = list(takewhile(lambda call: not call.caller.startswith("reports."), calls))  # reports read images again
    assert modules_entered_twice(learning) == []
    assert [call.caller for call in calls if call.function == "open_data"] == ["pipeline.train"]
    way = list(dict.fromkeys(call.callee for call in learning if call.value == "bytes"))
    assert way == ["cache.keys", "data.decode", "data.rgb", "data.image_formats", "data.bit_depth"]


def planted(module: str, source: str, **names: Any) -> Callable[..., Any]:
    """A function ``f`` that seems to lie in a module of the package."""
    exec(compile(source, PACKAGE / f"{module.replace('.', '/')}.py", "exec"), names)
    function: Callable[..., Any] = names["f"]
    return function


def test_a_call_against_the_flow_and_a_second_entry_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "image.png"
    random_image(0).save(image)
    with traced_calls(data_of(tmp_path)) as calls:
        scan([str(image)], cache=tmp_path / "1")
    assert (upward_calls(calls), modules_entered_twice(calls)) == ([], [])
    decode_again = planted("features.extract", "def f(data): decode(data)", decode=decode)
    with traced_calls(data_of(tmp_path)) as calls:
        scan([str(image)], cache=tmp_path / "2")
        decode_again(image.read_bytes())
    assert modules_entered_twice(calls) == ["data.decode"]
    above = planted("serve.app", "def f(data): return content_key(data)", content_key=content_key)
    monkeypatch.setattr("headstart.data.scan.content_key", above)
    with traced_calls(data_of(tmp_path)) as calls:
        scan([str(image)], cache=tmp_path / "3")
    assert upward_calls(calls) == [("data.scan", "serve.app")]


OPENS_FILES = re.compile(r"\bImage\.open\((?!io\.)|\.read_bytes\(|(?<![.\w])(?<!def )open\(|\bcat_file\(|\bos\.open\(")
"""What opens a file, or reads all of it; an image in memory is opened from ``io.BytesIO``."""

OPENS_NO_IMAGES = {
    "labelling.label_import": "JSON documents of labels",
    "exports.formats.web": "exported models",
    "exports.gpu_graphs": "exported models",
    "exports.onnxruntime_web": "files of an npm package",
    "exports.readers.web_reader": "exported models",
    "backbone.hub_weights": "downloads weights",
    "cache.entries": "cache",
    "cache.row_store": "cache",
    "cache.sealed_document": "cache",
    "cache.store_files": "cache",
    "cache.verify": "cache",
    "cli.main": "the null device",
    "engine.plan": "cache",
    "exports.converters.litert_converter": "exported models",
    "exports.formats.litert": "exported models",
    "exports.formats.torch_export": "exported models",
    "exports.readers.torch_reader": "exported models",
    "exports.snippets": "code for users",
    "exports.timm_card": "code for users",
    "files": "CSV files, and what is written",
    "labelling.journal": "journal of a session",
    "labelling.label_table": "table of labels",
    "runs.environment": "weights",
    "runs.folder": "JSON of a run",
    "runs.log": "log of a run",
    "runs.test_set_audit": "list of uses",
    "runtime.command": "the null device",
    "runtime.onnx_file": "exported models",
    "serve.corrections": "index of corrections",
    "serve.labelling.backend": "exported labels",
    "serve.static_files": "scripts of the page",
    "serve.watch.run_reader": "log of a run",
    "verbs.push": "files to publish",
}
"""Module that opens files -> which ones; none of them are images."""


def modules_that_open_files(sources: dict[str, str]) -> set[str]:
    """Modules outside ``data.sources`` that open a file."""
    return {name for name, text in sources.items() if not name.startswith("data.sources.") and OPENS_FILES.search(text)}


def test_only_sources_open_image_files() -> None:
    opening = modules_that_open_files({name: path.read_text() for name, path in modules().items()})
    assert opening == OPENS_NO_IMAGES.keys()


@pytest.mark.parametrize("line", ["Path(p).read_bytes()", "open(p, 'rb')", "Image.open(p)", "store.cat_file(p)"])
def test_a_module_that_opens_a_file_is_seen(line: str) -> None:
    assert modules_that_open_files({"data.scan": line}) == {"data.scan"}
    assert modules_that_open_files({"data.scan": "Image.open(io.BytesIO(data))", "data.sources.local": line}) == set()


def test_no_module_is_named_after_nothing() -> None:
    parts = {part for name in modules() for part in name.split(".")}
    assert parts & {"util", "utils", "common", "helper", "helpers", "misc", "tools", "base", "core"} == set()


def test_no_module_is_long() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: length for name, length in lengths.items() if length > 500} == {}


def code_lines(source: str) -> dict[str, int]:
    """Function -> its lines of code, without its docstring, comments and blank lines."""
    lines, found = source.splitlines(), {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            has_docstring = ast.get_docstring(node, clean=False) is not None
            docstring = range(first.lineno, (first.end_lineno or 0) + 1) if has_docstring else ()
            numbers = [n for n in range(node.lineno, (node.end_lineno or 0) + 1) if n not in docstring]
            code = [text for n in numbers if (text := lines[n - 1].strip()) and not text.startswith("#")]
            found[f"{node.name}, line {node.lineno}"] = len(code)
    return found


def test_no_function_is_long() -> None:
    """At most 40 lines of code: parts of a longer function become functions."""
    long = {
        f"{name}: {function}": length
        for name, path in modules().items()
        for function, length in code_lines(path.read_text()).items()
        if length > 40
    }
    assert long == {}


def test_lines_of_code_are_those_without_docstring_comments_and_blanks() -> None:
    source = 'def f() -> int:\n    """Two\n    lines."""\n    x = 1\n\n    # why\n    return x\n'
    assert code_lines(source) == {"f, line 1": 3}
    assert code_lines("def f() -> None:\n" + "    print()\n" * 41) == {"f, line 1": 42}


def test_no_two_classes_share_a_name() -> None:
    places: dict[str, list[str]] = {}
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(name)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_every_module_says_in_its_first_line_what_it_is() -> None:
    for path in PACKAGE.rglob("*.py"):
        lead = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
        assert lead.endswith((".", ":")), path
        assert len(lead) > 15, path


@pytest.mark.slow
def test_loading_a_model_and_choosing_an_engine_import_only_what_they_need(tmp_path: Path) -> None:
    small_model(image_size=32, ood_detector=True).save(tmp_path / "m.safetensors")
    slow = ("captum", "cleanlab", "matplotlib", "onnx", "onnxruntime", "scipy", "sklearn", "torch._dynamo", "triton")
    script = (
        "import sys, headstart; before = list(sys.meta_path); "
        f"headstart.load({str(tmp_path / 'm.safetensors')!r}); "
        f"print([name for name in {slow} if name in sys.modules], sys.meta_path == before); "
        "import headstart.engine.select, headstart.engine.measure; "
        "from headstart.engine.onnx_runtime import onnxruntime_version; onnxruntime_version(); "
        "print([name for name in ('onnx', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[] True", "[]"]


def test_importing_headstart_imports_nothing_heavy() -> None:
    heavy = ("torch", "timm", "torchvision", "numpy", "PIL", "onnx", "onnxruntime", "matplotlib")
    script = f"import sys, headstart, headstart.cli.main; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_tree_in_architecture_md_is_the_package() -> None:
    """A new module needs a few words there."""
    page = (PACKAGE.parent / "ARCHITECTURE.md").read_text()
    listed: list[str] = []
    for folder, words in re.findall(r"^- \*\*`([\w/]+)/`\*\* (.*?)(?=^- \*\*|^## )", page, re.MULTILINE | re.DOTALL):
        prefix = "" if folder == "headstart" else folder.replace("/", ".") + "."
        listed += [prefix + name for name in re.findall(r"`(\w+)`", words)]
    assert sorted(listed) == sorted(modules())
