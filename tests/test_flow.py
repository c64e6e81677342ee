"""The shape of the package: one direction of imports, a small public surface, nothing at import."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import headstart as hs
from headstart import errors

PACKAGE = Path(hs.__file__).parent

ORDER = [
    "errors",
    "concurrency",
    "files",
    "html",
    "progress",
    "hub",
    "store",
    "data.bit_depth",
    "data.images",
    "data.finding",
    "data.table_file",
    "data.table",
    "data.augment",
    "data.scan",
    "data.quality",
    "data.duplicates",
    "data.dataset",
    "data.sources",
    "data.splits",
    "data.checks",
    "backbone.names",
    "backbone.weight_files",
    "backbone.weights",
    "backbone.layers",
    "backbone.pooling",
    "backbone.split",
    "backbone.device",
    "backbone.depthwise",
    "backbone.fold",
    "backbone.forward",
    "backbone.lower",
    "backbone.average",
    "backbone.onnx_runtime",
    "backbone.engine",
    "features.extract",
    "features.activations",
    "features.export",
    "training.targets",
    "training.thresholds",
    "training.temperature",
    "training.calibration",
    "training.outliers",
    "training.custom_heads",
    "training.heads",
    "training.recipe",
    "training.linear_fits",
    "training.probe",
    "training.label_issues",
    "training.doubts",
    "training.classical",
    "training.mixing",
    "training.feed",
    "training.graphed",
    "training.frozen",
    "training.finetune",
    "training.extension",
    "training.sweep",
    "training.classifiers",
    "training.out_of_fold",
    "training.ladder",
    "training.checkpoint",
    "model_file",
    "model",
    "evaluation.metrics",
    "evaluation.predictions",
    "evaluation.tables",
    "evaluation.comparison",
    "evaluation.curves",
    "evaluation.reliability",
    "evaluation.paired",
    "evaluation.image_map",
    "evaluation.heat",
    "evaluation.sheets",
    "evaluation.card",
    "evaluation.report",
    "exports.resize",
    "exports.about",
    "exports.opened",
    "exports.graph",
    "exports.onnx",
    "exports.program",
    "exports.reader",
    "exports.agreement",
    "exports.int8",
    "exports.snippets",
    "runs.log",
    "runs.now",
    "runs.stages",
    "runs.known",
    "runs.timetable",
    "runs.prepare",
    "runs.workbench",
    "runs.conditions",
    "runs.climb",
    "runs.folder",
    "runs.check",
    "runs.uses",
    "runs.report",
    "runs.train",
    "runs.events",
    "runs.compare",
    "runs.evaluate",
    "runs.paired",
    "runs.export",
    "serve.limits",
    "serve.metrics",
    "serve.problem",
    "serve.forms",
    "serve.guard",
    "serve.room",
    "serve.service",
    "serve.documents",
    "serve.assets",
    "serve.corrections",
    "runs.retrain",
    "serve.neighbours",
    "serve.page",
    "serve.watching",
    "serve.watch",
    "serve.app",
    "serve.connections",
    "serve.server",
    "serve.viewer",
    "estimators",
    "demo",
    "deferred",
    "cli",
]


def modules() -> dict[str, Path]:
    found = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}
    return {name: path for name, path in found.items() if not name.endswith(("__init__", "__main__"))}


def test_a_module_imports_only_what_stands_before_it_in_the_flow() -> None:
    assert sorted(modules()) == sorted(ORDER)
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("headstart."):
                imported = (node.module or "").removeprefix("headstart.")
                assert ORDER.index(imported) < ORDER.index(name), f"{name} imports {imported}"


def test_every_public_name_is_there_and_nothing_else_is_promised() -> None:
    assert sorted(hs.__all__) == hs.__all__ == dir(hs)
    for name in hs.__all__:
        assert getattr(hs, name).__doc__, name
    assert sorted(hs._HOMES) == hs.__all__


def test_importing_headstart_imports_nothing_heavy() -> None:
    script = (
        "import sys, headstart, headstart.cli; print([m for m in ('torch','timm','numpy','PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_error_and_every_type_of_a_public_signature_can_be_imported_from_the_top() -> None:
    assert {
        name for name, own in vars(errors).items() if inspect.isclass(own) and own.__module__ == errors.__name__
    } <= set(hs.__all__)
    needed: dict[str, str] = {}
    for name in hs.__all__:
        for where, function in _signatures(name, getattr(hs, name)):
            for hint in typing.get_type_hints(function).values():
                needed |= {own.__name__: where for own in _classes(hint)}
    assert len(needed) > 20
    assert {name: where for name, where in needed.items() if name not in hs.__all__} == {}


def _signatures(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Public functions, methods, and the fields of dataclasses."""
    if not inspect.isclass(value):
        yield name, value
        return
    if dataclasses.is_dataclass(value):
        yield name, value
    for own, method in vars(value).items():
        method = method.fget if isinstance(method, property) else getattr(method, "__func__", method)
        if not own.startswith("_") and inspect.isfunction(method):
            yield f"{name}.{own}", method


def _classes(hint: Any) -> Iterator[type]:
    if inspect.isclass(hint) and hint.__module__.startswith("headstart."):
        yield hint
    for part in typing.get_args(hint):
        yield from _classes(part)
