"""A classifier from features in shards is that from features in memory, and its model file predicts."""

from __future__ import annotations

import io
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from commands import main
from pyarrow import parquet
from random_images import write_classes
from recorded_progress import RecordedProgress
from small_models import small_model

import headstart as hs
from headstart.backbone.pixel_net import FeatureNet
from headstart.backbone.weights import random_backbone
from headstart.data.streamed_dataset import StreamedDataset
from headstart.distributed import work
from headstart.distributed.bulk import extract_shards, predict_shards
from headstart.distributed.fit_probe import MOST_EVALUATED, ShardedFit, fit_probe_on_shards
from headstart.distributed.sharded_features import ShardedFeatures, open_sharded_features
from headstart.distributed.shards import ImageRow
from headstart.errors import DataError, OptionError, OutputError, WeightsError
from headstart.progress import SilentProgress
from headstart.training.losses import log_losses
from headstart.training.probe import fit_probe
from headstart.training.recipe import Recipe


def here(work: Any, shards: Any) -> Any:
    """Computes shards in this process."""
    computer = work.computer("cpu")
    for shard in shards:
        yield shard, computer(shard.rows)


@pytest.fixture(scope="module")
def net() -> FeatureNet:
    return FeatureNet(random_backbone("test_resnet", image_size=64))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_classes(tmp_path_factory.mktemp("d") / "colours", {"blue": 60, "green": 60, "red": 60})
    (folder / "red" / "empty.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def features(data: Path, net: FeatureNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("f") / "features"
    extract_shards(net, hs.open_data(data), out, dtype="float32", engine=here, shard_size=25)
    return out


@pytest.fixture(scope="module")
def sharded(features: Path) -> ShardedFeatures:
    return open_sharded_features(features)


@pytest.fixture(scope="module")
def fitted(sharded: ShardedFeatures, net: FeatureNet) -> ShardedFit:
    return fit_probe_on_shards(sharded, net, recipe=Recipe(effort="probe", val=0.3), progress=SilentProgress())


def test_shards_have_the_features_of_every_readable_image(
    sharded: ShardedFeatures, features: Path, data: Path, net: FeatureNet
) -> None:
    import torch

    from headstart.data.decode import decode
    from headstart.data.preprocessing import resize_and_crop

    assert len(sharded) == 180
    assert sharded.classes == ("blue", "green", "red")
    assert json.loads((features / "manifest.json").read_text())["unreadable"] == 1
    (path,) = sharded.paths(np.array([70]))
    pixels = resize_and_crop(decode(path).image, net.backbone.preprocessing)
    with torch.inference_mode():
        expected = net(torch.from_numpy(pixels[None].copy())).numpy()
    assert np.abs(sharded.read([70]) - expected).max() < 1e-4 * np.abs(expected).max()
    assert sharded.classes[sharded.labels[70]] == Path(path).parent.name


def test_it_is_the_probe_in_memory(fitted: ShardedFit, sharded: ShardedFeatures) -> None:
    held_out = {path for part in fitted.evaluated for path in part.paths}
    paths = sharded.paths(np.arange(len(sharded)))
    train = [i for i, path in enumerate(paths) if path not in held_out]
    expected = fit_probe(sharded.read(train), sharded.labels[train], classes=3)
    assert expected.reason == fitted.reason
    held = np.setdiff1d(np.arange(len(sharded)), train)
    scores = sharded.read(held) @ expected.weight.T + expected.bias
    losses = [log_losses(one, sharded.labels[held]) for one in (scores, fitted.model.logits(sharded.read(held)))]
    assert losses[0].mean() == pytest.approx(losses[1].mean(), abs=0.005)
    assert {part.scores.name for part in fitted.evaluated} == {"val", "test"}
    assert fitted.model.calibration.images == len(fitted.evaluated[0].paths)


def test_the_model_file_predicts_the_images(fitted: ShardedFit, tmp_path: Path) -> None:
    part = fitted.evaluated[0]
    model = hs.load(fitted.model.save(tmp_path / "m.safetensors"))
    found = model.predict(list(part.paths), top=3, device="cpu")
    assert [p.label for p in found] == [part.classes[i] for i in part.probabilities.argmax(1)]
    assert [p.probability for p in found] == pytest.approx(part.probabilities.max(1).tolist(), abs=1e-4)


def test_splits_are_drawn_as_in_a_run(fitted: ShardedFit, sharded: ShardedFeatures, data: Path) -> None:
    from headstart.data.scan import scan
    from headstart.data.splits import SplitShares, make_split

    dataset = hs.open_data(data)
    split = make_split(dataset, scan(dataset.files()), (), shares=SplitShares(0.3))
    expected = {dataset.files()[i] for i in split.positions("val")}
    assert set(fitted.evaluated[0].paths) == expected


def test_few_images_are_evaluated_of_many(
    sharded: ShardedFeatures, net: FeatureNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headstart.distributed.fit_probe.MOST_EVALUATED", 10)
    assert MOST_EVALUATED > 10
    found = fit_probe_on_shards(sharded, net, recipe=Recipe(effort="probe", val=0.3), progress=SilentProgress())
    assert [part.scores.count for part in found.evaluated] == [10, 10]


def test_what_cannot_be_fitted_is_refused(sharded: ShardedFeatures, features: Path, tmp_path: Path) -> None:
    other = FeatureNet(random_backbone("test_resnet", image_size=96))
    with pytest.raises(WeightsError, match="another network"):
        fit_probe_on_shards(sharded, other, recipe=Recipe(), progress=SilentProgress())
    with pytest.raises(OutputError, match="not finished"):
        open_sharded_features(tmp_path)
    copied = tmp_path / "copied"
    copied.mkdir()
    for file in features.glob("*.*"):
        (copied / file.name).write_bytes(file.read_bytes())
    next(copied.glob("*.parquet")).write_bytes(b"x")
    with pytest.raises(DataError, match="damaged or missing"):
        open_sharded_features(copied)


@pytest.mark.slow
def test_predictions_in_shards_are_those_of_the_model(data: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    model = small_model(ood_detector=True)
    files = hs.open_data(data).files()
    found = predict_shards(model, files, tmp_path / "out", top=2, engine=here, shard_size=50)
    assert (found.num_rows, found.num_unreadable) == (180, 1)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    rows = [
        row for shard in manifest["shards"] for row in parquet.read_table(tmp_path / "out" / shard["file"]).to_pylist()
    ]
    expected = [p for p in model.predict(files, top=3, device="cpu") if p.error is None]
    assert [row["path"] for row in rows] == [p.path for p in expected]
    for row, prediction in zip(rows, expected, strict=True):
        assert (row["label"], row["answer"]) == (prediction.label, prediction.answer)
        assert row["probability2"] == pytest.approx(prediction.top[1][1], abs=1e-5)
        assert row["outlier"] == pytest.approx(prediction.outlier, abs=0.05)
        assert dict(zip(model.classes, row["probabilities"], strict=True)) == pytest.approx(
            dict(prediction.top), abs=1e-5
        )
    with pytest.raises(DataError, match="has predictions"):
        open_sharded_features(tmp_path / "out")


def test_rows_of_a_table_that_are_left_out_are_said(data: Path, net: FeatureNet, tmp_path: Path) -> None:
    table, said = tmp_path / "table.csv", RecordedProgress()
    rows = [f"{data}/{name}/{i}.png,{name}" for name in ("blue", "red") for i in range(3)]
    table.write_text("\n".join(["path,label", *rows, f"{data}/red/9.png,"]))
    extract_shards(net, StreamedDataset(table), tmp_path / "out", engine=here, progress=said)
    assert "Serious: table.csv: 1 of 7 rows have no label and are left out (row 8: no label)." in said.said


def test_options_out_of_range_are_refused(data: Path, net: FeatureNet, tmp_path: Path) -> None:
    dataset = hs.open_data(data)
    options: list[dict[str, Any]] = [{"dtype": "int8"}, {"shard_size": 0}, {"shard_size": True}]
    for one in options:
        with pytest.raises(OptionError, match=next(iter(one))):
            extract_shards(net, dataset, tmp_path / "out", engine=here, **one)
    assert not (tmp_path / "out").exists()


def test_features_beyond_half_precision_are_refused(
    data: Path, net: FeatureNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "run_stream", lambda _engine, batches: [np.full((len(b), 96), 1e9) for b in batches])
    row = ImageRow(hs.open_data(data).files()[0])
    with pytest.raises(OptionError, match=r"dtype float16.*Choose dtype float32"):
        work.FeatureWork.of(net, "float16").computer("cpu")([row])


def test_an_unreadable_image_that_is_listed_twice_has_two_rows(data: Path, net: FeatureNet) -> None:
    row = ImageRow(str(data / "red" / "empty.png"))
    found = work.FeatureWork.of(net, "float16").computer("cpu")([row, row])
    assert found.unreadable is not None
    assert parquet.read_table(io.BytesIO(found.unreadable))["path"].to_pylist() == [row.path] * 2


def test_features_and_predictions_of_unreadable_images_alone_are_an_error(
    net: FeatureNet, features: Path, tmp_path: Path
) -> None:
    for name in ("blue", "red"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 2 image\(s\) can be read\. .*blue/0\.png: "):
        extract_shards(net, StreamedDataset(tmp_path / "data"), tmp_path / "features", engine=here)
    model = fit_probe_on_shards(
        open_sharded_features(features), net, recipe=Recipe(effort="probe", val=0.3), progress=SilentProgress()
    ).model
    paths = [str(tmp_path / "data" / "red" / "0.png")]
    with pytest.raises(DataError, match=r"the 1 image\(s\) can be read\. .*red/0\.png: "):
        predict_shards(model, paths, tmp_path / "predictions", engine=here)


def test_a_damaged_shard_is_named(features: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(features, tmp_path / "copy")
    file = sorted(copy.glob("*.parquet"))[0]
    group = parquet.read_metadata(file).row_group(0)
    (start,) = [
        group.column(i).data_page_offset
        for i in range(group.num_columns)
        if group.column(i).path_in_schema.startswith("features")
    ]
    content = bytearray(file.read_bytes())
    content[start : start + 64] = b"\xff" * 64  # its last bytes, which say where the columns are, are whole
    file.write_bytes(content)
    damaged = open_sharded_features(copy)
    with pytest.raises(DataError, match=rf"{file.name}: damaged or missing\. Remove it if it is there, and run"):
        damaged.read(np.arange(len(damaged)))


def test_one_flipped_bit_in_a_shard_is_named_or_changes_nothing(features: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(features, tmp_path / "copy")
    file, draw = sorted(copy.glob("*.parquet"))[0], random.Random(0)
    whole, content, found = read_whole(copy), file.read_bytes(), []
    for _ in range(40):
        damaged = bytearray(content)
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)
        found.append(read_whole(copy))
    errors = [one for one in found if one != whole]
    assert len(errors) > 20
    assert all(str(one[0]).startswith(f"{file}: damaged or missing. Remove it") for one in errors)


@pytest.mark.parametrize("cell", [b"\xff" * 32, b"no content hash"])
def test_text_in_a_shard_of_an_earlier_version_that_is_damaged_is_named(
    features: Path, tmp_path: Path, cell: bytes
) -> None:
    copy = shutil.copytree(features, tmp_path / "copy")
    file = sorted(copy.glob("*.parquet"))[0]
    table = parquet.read_table(file)
    parquet.write_table(table.set_column(1, "key", pa.array([cell] * len(table)).view(pa.string())), file)
    with pytest.raises(DataError, match=f"{file.name}: damaged or missing"):
        open_sharded_features(copy)


def read_whole(folder: Path) -> list[object]:
    """Everything that shards have, or why they cannot be read."""
    try:
        found = open_sharded_features(folder)
        every = np.arange(len(found))
        content = [found.labels.tolist(), found.classes, found.splits.tolist(), found.keys.tolist(), found.groups]
        return [*content, found.paths(every), found.read(every).tolist()]
    except DataError as error:
        return [error]


@pytest.mark.parametrize("other", ["float16", "float64"])
def test_a_shard_whose_features_have_another_type_is_refused(features: Path, tmp_path: Path, other: str) -> None:
    copy = shutil.copytree(features, tmp_path / "copy")
    file = sorted(copy.glob("*.parquet"))[0]
    table = parquet.read_table(file)
    kind = pa.list_(pa.type_for_alias(other), table["features"].type.list_size)
    numbers = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(kind.list_size * len(table), other)), type=kind)
    opened = open_sharded_features(copy)
    parquet.write_table(table.set_column(5, "features", numbers), file)
    with pytest.raises(DataError, match=f"{file.name}: damaged or missing"):
        opened.read(np.arange(len(opened)))
    with pytest.raises(DataError, match=f"{file.name}: damaged or missing"):
        open_sharded_features(copy)


def test_a_share_of_a_split_that_is_given_is_refused(sharded: ShardedFeatures, net: FeatureNet) -> None:
    given = np.zeros(len(sharded), np.int8)
    given[::3] = 1
    split = replace(sharded, splits=given)
    with pytest.raises(OptionError, match=r"val 0\.3: .* already has the splits \(train, val\)"):
        fit_probe_on_shards(split, net, recipe=Recipe(val=0.3), progress=SilentProgress())
    found = fit_probe_on_shards(split, net, recipe=Recipe(), progress=SilentProgress())
    assert [part.scores.name for part in found.evaluated] == ["val"]


@pytest.mark.slow
def test_the_commands_extract_fit_and_predict(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = ["--image-size", 64, "--cut", "blocks.2"]
    shards = ["--workers", 2, "--shard-size", 60]
    folder, file = tmp_path / "features", tmp_path / "model.safetensors"
    data = shutil.copytree(data, tmp_path / "data")
    shutil.copy(data / "red" / "0.png", data / "blue" / "copy.png")
    status, out, err = main("extract", data, "--out", folder, *shards, *network, capsys=capsys)
    assert (status, out) == (0, f"{folder}: 181 images; 1 cannot be read, see unreadable/\n"), err
    status, out, err = main("fit", folder, "--out", file, *network, capsys=capsys)
    assert status == 0, err
    assert out.startswith("val accuracy ")
    assert out.endswith(f"Findings: {tmp_path}/model.findings.json\nModel: {file}\n")
    (written,) = [
        one for one in json.loads((tmp_path / "model.findings.json").read_text()) if one["severity"] == "serious"
    ]
    assert written["images"] == [[f"{data}/blue/copy.png", f"{data}/red/0.png"]]
    assert "\nSerious: 1 pair(s) of files with equal bytes have different labels (" in out
    status, out, err = main("predict", file, data, "--out", tmp_path / "p", "--workers", 1, "--json", capsys=capsys)
    assert status == 0, err
    assert json.loads(out) == {
        "folder": str(tmp_path / "p"),
        "images": 181,
        "unreadable": 1,
        "computed": 182,
        "finished": True,
    }
    status, _, err = main("fit", folder, "--out", file, capsys=capsys)
    assert status == 1
    assert "another network or with other weights" in err
    status, _, err = main("extract", data, "--out", tmp_path / "f.npz", "--workers", 2, capsys=capsys)
    assert status == 2
    assert "--workers: writes a folder of shards" in err
    csv = ["--out", tmp_path / "p.csv", "--excel", "--workers", 2]
    status, _, err = main("predict", file, data, *csv, capsys=capsys)
    assert status == 2
    assert "--workers: writes a folder of shards" in err
    status, _, err = main("predict", file, data, "--ray", capsys=capsys)
    assert status == 2
    assert "--ray: writes a folder of shards: name it with --out FOLDER" in err
