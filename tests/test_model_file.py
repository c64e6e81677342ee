"""Model files from strangers: 2,000 changed and signed again give a named error or a model that predicts."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from small_models import shown, small_model
from torch import Tensor, nn

from headstart.errors import ModelFileError
from headstart.model import Model, load
from headstart.model_file import KEY, digest, read_content
from headstart.training.custom_heads import describe

MUTATIONS = 2000
LOADED = 25
"""Of the mutations that pass the schema, how many are loaded by the default suite."""

DEEP = "<5,000 levels>"
"""Stands in a document for lists within lists, which json cannot write."""

VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, -(2**70), 10**400, 0.5, 1e308, -1e308, 1e-320),
    *(float("nan"), float("inf"), float("-inf"), "", "x", "0", "nan", "x" * 20_000, "\ud800", "\0", "ü🙂", "../../x"),
    *("hf-hub:timm/resnet18.a1_in1k", "local-dir:/tmp", "torch.nn.Linear", "resnet50", "9" * 5000, "99999999-99999999"),
    *([], {}, [[]], [None], {"a": 1}, [0.1] * 3, [1, 2, 3], [[1]] * 50, DEEP, "conv9999-avg", "none", "flatten"),
]


def custom_model() -> Model:
    model = small_model(image_size=32, cut="layer1", pool="avg")
    length = next(iter(model.head.parameters())).shape[1]
    head = nn.Sequential(nn.Linear(length, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.2), nn.Linear(4, 3))
    return Model(model.net, describe(head), model.classes, recipe=model.recipe, data={"name": "d"}, scores={})


MODELS: dict[str, Callable[[], Model]] = {
    "linear": lambda: small_model(image_size=32, cut="layer1", pool="avg", ood_detector=True),
    "hidden": lambda: small_model(image_size=32, cut="layer1", pool="none", head="conv4-avg-5-0.1", several=True),
    "rbf": lambda: small_model(image_size=32, cut="layer1", pool="avg", head="rbf"),
    "neighbours": lambda: small_model(image_size=32, cut="layer1", pool="max", head="neighbours"),
    "custom": custom_model,
}


class Original:
    """A sound file's document and tensors."""

    def __init__(self, model: Model, folder: Path) -> None:
        model = model.replace(
            scores={"val": {"correct": 9, "count": 10, "low": 0.6, "high": 0.98}},
            data={"name": "colours", "counts": {"train": {"red": 3, "blue": 4}}, "train_sha256": "ab"},
        )
        with safe_open(model.save(folder / "m.safetensors"), framework="pt") as opened:
            self.document: dict[str, Any] = json.loads(opened.metadata()[KEY])
            self.tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        del self.document["sha256"]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Original]:
    return [Original(make(), tmp_path_factory.mktemp(name)) for name, make in MODELS.items()]


def places(document: Any, inside: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every value."""
    pairs = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in pairs:
        yield (*inside, key)
        yield from places(value, (*inside, key))


def change(document: dict[str, Any], rng: random.Random) -> None:
    """Alters one value of a document in place."""
    path = rng.choice(list(places(document)))
    holder: Any = document
    for key in path[:-1]:
        holder = holder[key]
    key, value = path[-1], holder[path[-1]]
    kind = rng.randrange(7)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(["x", "ü", "__class__", key + "2"])] = holder.pop(key)
    elif kind == 2 and isinstance(value, (int, float)) and -1e12 < value < 1e12 and not isinstance(value, bool):
        holder[key] = rng.choice([-value, value * 1e9, value + 1, value / 1e12, str(value), [value], int(value * 1e6)])
    elif kind == 2 and isinstance(value, list):
        holder[key] = rng.choice([value * 2, value[:-1], {"0": value}, [value], value[::-1], [*value, None]])
    elif kind == 2 and isinstance(value, str):
        holder[key] = rng.choice([value * 2, [value], {value: value}, value[::-1], value + "\udcff", value.upper()])
    elif kind == 3:
        other: Any = document
        for step in rng.choice(list(places(document))):
            other = other[step]
        holder[key] = copy.deepcopy(other)
    else:
        holder[key] = copy.deepcopy(rng.choice(VALUES))


def change_tensor(tensors: dict[str, Tensor], rng: random.Random) -> None:
    """Alters one tensor of a file."""
    name = rng.choice(sorted(tensors))
    tensor = tensors.pop(name)
    tensor = tensor.real if tensor.is_complex() else tensor
    number = rng.choice([float("nan"), float("inf"), 3e38, -3e38, 0.0, -1.0])
    changed: list[Tensor | None] = [
        *(None, tensor.flatten(), tensor[None], tensor[..., :0] if tensor.ndim else tensor[None]),
        *(tensor.double(), tensor.half(), tensor.to(torch.int64), tensor.to(torch.complex64), tensor.to(torch.bool)),
        *(torch.full(tensor.shape, number), torch.zeros(()), tensor.to(torch.float8_e4m3fn)),
    ]
    new = rng.choice(changed)
    if new is not None:
        tensors[rng.choice([name, name, name, name + "x", "other." + name])] = new.contiguous()


def mutations(originals: list[Original], seed: int, count: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Texts of documents that are signed as their writer would, and tensors."""
    rng = random.Random(seed)
    for number in range(count):
        original = originals[number % len(originals)]
        document, tensors = copy.deepcopy(original.document), dict(original.tensors)
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            change(document, rng) if rng.random() < 0.85 else change_tensor(tensors, rng)
        text = json.dumps(document).replace(json.dumps(DEEP), "[" * 5000 + "]" * 5000)
        try:
            signed = json.loads(text) | {"sha256": digest(document, tensors)}
            text = json.dumps(signed)
        except (RecursionError, RuntimeError, TypeError):
            pass  # cannot be signed
        yield text, tensors


def check_answers(file: Path) -> None:
    model = load(file)
    images = [shown(i) for i in range(2)]
    chances, outliers, faults = model.predict_with_outliers(images)
    for answer in model.predict(images):
        assert answer.label in model.classes
    assert not faults
    assert np.isfinite(chances).all()
    assert (chances >= 0).all()
    assert (chances <= 1).all()
    assert model.thresholds is not None or np.allclose(chances.sum(axis=1), 1)
    assert np.isnan(outliers).all() or ((outliers >= 0) & (outliers <= 1)).all()
    assert model._repr_html_()
    assert isinstance(model.calibration_text, str)


def run(originals: list[Original], folder: Path, *, seed: int, count: int, loaded: int) -> tuple[int, int]:
    """(refused, loaded); every refusal names the file, and nothing else is raised."""
    refused, passed = 0, list[tuple[str, dict[str, Tensor]]]()
    file = folder / "m.safetensors"

    def is_refused(work: Callable[[], object]) -> bool:
        try:
            work()
        except ModelFileError as error:
            message = str(error)
        else:
            return False
        assert message.startswith(f"{file}: ")
        assert len(message) < 600
        return True

    for text, tensors in mutations(originals, seed, count):
        if is_refused(lambda text=text, tensors=tensors: read_content(text, tensors, file)):
            refused += 1
        else:
            passed.append((text, tensors))
    answered = 0
    for text, tensors in random.Random(seed).sample(passed, min(loaded, len(passed))):
        file.write_bytes(save(tensors, {KEY: text}))
        answered += not is_refused(lambda: check_answers(file))
    return refused, answered


@pytest.mark.slow
@pytest.mark.parametrize("count", [MUTATIONS // 5, pytest.param(MUTATIONS, marks=pytest.mark.exhaustive)])
def test_changed_files_are_refused_or_predict(originals: list[Original], tmp_path: Path, count: int) -> None:
    loaded = LOADED * count // MUTATIONS
    refused, answered = run(originals, tmp_path, seed=0, count=count, loaded=loaded)
    assert refused > count / 2
    assert answered > loaded / 4


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(1, 4))
def test_each_changed_file_that_passes_the_schema_predicts_or_is_refused(
    originals: list[Original], tmp_path: Path, seed: int
) -> None:
    run(originals, tmp_path, seed=seed, count=MUTATIONS, loaded=MUTATIONS)


def test_a_file_that_was_not_changed_is_read(originals: list[Original], tmp_path: Path) -> None:
    """The schema refuses nothing that was written, with and without what later versions added."""
    for original in originals:
        for left_out in ((), ("thresholds", "calibration")):
            document = {name: value for name, value in original.document.items() if name not in left_out}
            document["preprocessing"] = {k: v for k, v in document["preprocessing"].items() if k != "value_range"}
            document["sha256"] = digest(document, original.tensors)
            file = tmp_path / "m.safetensors"
            file.write_bytes(save(original.tensors, {KEY: json.dumps(document)}))
            check_answers(file)


OLD_KEYS = {"target_accuracy": "wanted", "num_inliers": "usual_images", "num_inliers_accepted": "usual_kept"}
OLD_TENSORS = {
    "ood.references": "familiar.references",
    "ood.inlier_distances": "familiar.usual",
    "ood.limits": "familiar.limits",
}


def file_of_format_2(original: Original, file: Path, calibration: dict[str, Any]) -> str:
    """Writes a model under the keys of the previous version; gives its digest."""
    old = {OLD_KEYS.get(name, name): value for name, value in calibration.items()}
    tensors = {OLD_TENSORS.get(name, name): tensor for name, tensor in original.tensors.items()}
    document = original.document | {"calibration": old, "format_version": 2}
    document["sha256"] = digest(document, tensors)
    file.write_bytes(save(tensors, {KEY: json.dumps(document)}))
    return str(document["sha256"])


@pytest.mark.slow
def test_a_file_of_format_2_with_its_old_keys_gives_the_same_answers(originals: list[Original], tmp_path: Path) -> None:
    values = {"temperature": 1.5, "target_accuracy": 0.9, "num_inliers": 30, "num_inliers_accepted": 29}
    images = [shown(i) for i in range(4)]
    for original in originals:
        document = original.document | {"calibration": values}
        document["sha256"] = digest(document, original.tensors)
        (tmp_path / "new.safetensors").write_bytes(save(original.tensors, {KEY: json.dumps(document)}))
        sha256 = file_of_format_2(original, tmp_path / "old.safetensors", values)
        new, old = load(tmp_path / "new.safetensors"), load(tmp_path / "old.safetensors")
        assert new.calibration == old.calibration
        assert old.calibration.num_inliers_accepted == 29
        assert old.predict(images) == new.predict(images)
        assert old.version == sha256  # exports of it name this version
        assert load(old.save(tmp_path / "again.safetensors")).version == load(new.save(tmp_path / "n")).version
        check_answers(tmp_path / "old.safetensors")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("classes", ["a", "a", "b"], "classes: 'a' is listed twice"),
        ("classes", ["a", "", "b"], r"classes\[1\]: expected text"),
        ("preprocessing.std", [0.2, 0, 0.2], r"preprocessing.std\[1\]: expected a number from 0.0001"),
        ("preprocessing.height", 10**9, "preprocessing.height: expected a whole number"),
        ("preprocessing.interpolation", "magic", "preprocessing.interpolation: expected one of nearest"),
        ("preprocessing.mean", [float("nan")] * 3, r"preprocessing.mean\[0\]: expected a number"),
        ("backbone.build.name", "hf-hub:timm/resnet18.a1_in1k", "backbone.build.name: not an allowed name"),
        ("backbone.build.name", "no_such_net", "backbone.build.name: not an architecture"),
        ("calibration.temperature", 0, "calibration.temperature: expected a number"),
        ("thresholds", [0.5], "thresholds: expected 3 numbers"),
        ("recipe.epochs", "3", "recipe: epochs: expected a whole number"),
        ("libraries", ["torch"], "libraries: expected an object"),
        ("head.spec", "99999999", "tensor head"),
        ("head.kind", "pickle", "head.kind: expected one of layers"),
        ("scores", {"val": {"correct": "9"}}, "scores.val.correct: expected a whole number"),
        ("scores", {"val": {"correct": 10**400}}, "scores.val.correct: expected a whole number"),
        ("format_version", True, "format_version: expected a whole number"),
    ],
)
def test_the_message_names_file_and_field(
    originals: list[Original], field: str, value: object, words: str, tmp_path: Path
) -> None:
    document = copy.deepcopy(originals[0].document)
    *outer, last = field.split(".")
    holder = document
    for name in outer:
        holder = holder[name]
    holder[last] = value
    document["sha256"] = digest(document, originals[0].tensors)
    file = tmp_path / "changed.safetensors"
    file.write_bytes(save(originals[0].tensors, {KEY: json.dumps(document)}))
    with pytest.raises(ModelFileError, match=rf"changed\.safetensors: .*{words}"):
        load(file)


def test_what_load_would_refuse_is_not_saved(tmp_path: Path) -> None:
    model = small_model(image_size=32).replace(classes=("a", "a", "b"))
    with pytest.raises(ModelFileError, match="classes: 'a' is listed twice"):
        model.save(tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_head_takes_no_more_memory_than_its_file_holds(originals: list[Original], tmp_path: Path) -> None:
    """A description of a layer of 65 million by 65 million numbers is refused before anything is built."""
    document = copy.deepcopy(originals[0].document)
    document["head"] |= {"spec": "65000000-65000000"}
    with pytest.raises(ModelFileError, match="head"):
        read_content(
            json.dumps(document | {"sha256": digest(document, originals[0].tensors)}), originals[0].tensors, tmp_path
        )
