"""``headstart extract`` and ``layers``."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import main
from pyarrow import parquet


@pytest.mark.slow
def test_extracted_features_carry_path_and_label(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data, tmp_path / "d")
    (tmp_path / "d" / "red" / "0.png").write_bytes(b"")
    for ending in ("npz", "parquet"):
        code, out, err = main(
            "extract",
            tmp_path / "d",
            "--out",
            tmp_path / f"f.{ending}",
            "--image-size",
            64,
            "--cut",
            "blocks.2",
            capsys=capsys,
        )
        assert code == 0, err
        assert "59 images, 40 features each" in out
        assert "red/0.png: empty file" in err
    with np.load(tmp_path / "f.npz", allow_pickle=False) as file:
        features, paths, labels = file["features"], file["paths"], file["labels"]
    table = parquet.read_table(tmp_path / "f.parquet").to_pydict()
    assert features.shape == (59, 40)
    assert features.dtype == np.float32
    assert [Path(p).parent.name for p in paths] == labels.tolist()
    assert table["path"] == paths.tolist()
    assert np.array_equal(np.array(table["features"], np.float32), features)


def test_layers_prints_groups_in_order_with_totals(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = main("layers", "resnet18", "--classes", 5, "--unfreeze", "layer4", "--unfreeze", "fc", capsys=capsys)
    assert code == 0
    table, boundaries = out.split("\n\n")
    names = [line.split()[0] for line in table.splitlines()[2:-2]]
    assert names == ["conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4", "global_pool", "fc"]
    assert re.search(r"^layer3 +256 x 14 x 14 +100,352 +77 % +8,393,728 +5,120 +0$", boundaries, re.MULTILINE)
    assert boundaries.splitlines()[-1].split() == ["head", "512", "1,024", "100", "%", "0", "0", "0"]
    assert re.search(r"layer4 .* 512 x 7 x 7 +8,393,728 +yes", out)
    assert re.search(r"layer3 .* no", out)
    assert "Weights: 11,179,077, 8,396,293 trainable and 2,782,784 frozen." in out
    assert "BatchNorm statistics, not updated by gradients: 9,600." in out
    assert out.startswith("resnet18, images of 224 x 224 pixels: 1.81 billion multiply-accumulate operations (GMACs)")


@pytest.mark.slow
def test_layers_lists_how_many_weights_each_method_of_tuning_trains(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = main("layers", "test_vit", "--image-size", 32, "--json", capsys=capsys)
    assert code == 0
    trained = {boundary["name"]: boundary["trained"] for boundary in json.loads(out)["boundaries"]}
    factors, vectors = 8 * (256 + 128 + 256 + 256), 192 + 64 + 192 + 64 + 4 * 64
    assert {name: trained[name]["lora"] for name in ("blocks.4", "blocks.3")} == {
        "blocks.4": factors, "blocks.3": 2 * factors
    }  # fmt: skip
    assert trained["blocks.4"]["bias-norm"] == vectors + 2 * 64
    assert trained["blocks.4"]["full"] == vectors + 2 * 64 + 64 * (192 + 64 + 192 + 192)


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "trained"), [("resnet18", 513_000), ("convnext_atto", 321_000)])
def test_by_default_the_classifier_alone_is_trainable(
    backbone: str, trained: int, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = main("layers", backbone, "--image-size", 64, "--json", capsys=capsys)
    assert code == 0
    assert json.loads(out)["trainable"] == trained
    assert 0 < json.loads(out)["gmacs"] < 0.2  # at 224 pixels it is 1.8 and 0.55
