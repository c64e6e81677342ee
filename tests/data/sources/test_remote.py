"""Object storage and web servers: real servers on 127.0.0.1 give what the local files give."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import content_without_name
from object_storage import S3Server, s3_server, web_server
from public_storage import REPOSITORY, dataset_hub, gs_server
from pyarrow import parquet
from random_images import write_classes
from small_architectures import small_architectures
from small_models import small_model
from source_files import images_of, write_parquet, write_tar, write_zip

import headstart as hs
from headstart.data.listing import find_images
from headstart.data.scan import scan
from headstart.data.sources import remote
from headstart.data.sources.containers import close_containers
from headstart.data.sources.read import read_image
from headstart.distributed.bulk import extract_shards, predict_shards, shard_engine
from headstart.distributed.shards import Shard
from headstart.distributed.work import ShardTables, Work
from headstart.errors import DataError, MissingExtra, OptionError, SourceError, UnreadableImage
from headstart.features.export import export_features


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("remote") / "d", {"blue": 12, "red": 12})


@pytest.fixture(autouse=True)
def _fresh_connections() -> Iterator[None]:
    """Servers of other tests had other ports."""
    yield
    close_containers()
    remote.close_connections()


@pytest.fixture
def storage(folder: Path, tmp_path: Path) -> Iterator[S3Server]:
    images = images_of(folder)
    with s3_server() as server:
        for name, data in images.items():
            server.put(f"d/{name}", data)
        server.put("d.parquet", write_parquet(tmp_path / "d.parquet", images).read_bytes())
        server.put("d.tar", write_tar(tmp_path / "d.tar", images.items()).read_bytes())
        server.put("d.zip", write_zip(tmp_path / "d.zip", images).read_bytes())
        server.put("shards/train-0.tar", (tmp_path / "d.tar").read_bytes())
        yield server


@pytest.mark.slow
def test_s3_gives_the_check_the_features_the_model_and_the_predictions_of_the_local_folder(
    storage: S3Server, folder: Path, tmp_path: Path
) -> None:
    sources = ["s3://flowers/d", "s3://flowers/d.parquet", "s3://flowers/d.tar", "s3://flowers/d.zip"]
    with small_architectures():
        expected = _results(str(folder), tmp_path / "local")
        for number, source in enumerate(sources):
            found = _results(source, tmp_path / str(number))
            assert found["checked"] == expected["checked"], source
            np.testing.assert_array_equal(found["features"], expected["features"], err_msg=source)
            assert found["model"] == expected["model"], source
            assert found["top"] == expected["top"], source
            assert found["paths"][0].startswith(source), source
    assert len(hs.open_data("s3://flowers/shards/*.tar")) == len(hs.open_data("s3://flowers/shards")) == 24


def _results(source: str, place: Path) -> dict[str, object]:
    """What each verb makes of a source, with separate caches."""
    cache = place / "cache"
    look = hs.check(source, files_only=True, cache=cache)
    export_features(source, place / "features.npz", cache=cache, device="cpu", image_size=32)
    run = hs.train(source, out=place / "run", cache=cache, device="cpu", effort="probe", image_size=32)
    model = hs.load(run.folder)
    predictions = model.predict(source, device="cpu")
    return {
        "checked": (look.counts(), [finding.kind for finding in look.findings], look.scanned.keys),
        "features": np.load(place / "features.npz")["features"],
        "model": content_without_name(run.model_path),
        "top": [prediction.top for prediction in predictions],
        "paths": [prediction.path for prediction in predictions],
    }


@pytest.mark.slow
def test_shards_have_the_features_and_the_predictions_of_the_local_folder(
    storage: S3Server, folder: Path, all_engines: None, tmp_path: Path
) -> None:
    """Two worker processes read the tar file; starting them takes long, so the others are read in this process."""
    model = hs.load(hs.train(folder, out=tmp_path / "run", device="cpu", effort="probe", image_size=32).folder)
    expected: list[dict[bytes, bytes]] = []
    for number, source in enumerate([str(folder), "s3://flowers/d", "s3://flowers/d.parquet", "s3://flowers/d.tar"]):
        engine = shard_engine(workers=2, device="cpu") if source.endswith(".tar") else _in_this_process
        options: dict[str, Any] = {"engine": engine, "shard_size": 12}
        features, predictions = tmp_path / f"features {number}", tmp_path / f"predictions {number}"
        data = hs.open_data(source)
        assert extract_shards(model.net, data, features, **options).num_rows == 24
        assert predict_shards(model, data.files(), predictions, **options).num_rows == 24
        found = [_by_content(features, "features"), _by_content(predictions, "probability")]
        expected = expected or found
        assert len(found[0]) == len(found[1]) == 24, source
        assert found == expected, source


def _in_this_process(work: Work, shards: Iterable[Shard]) -> Iterator[tuple[Shard, ShardTables]]:
    computer = work.computer("cpu")
    for shard in shards:
        yield shard, computer(shard.rows)


def _by_content(shards: Path, column: str) -> dict[bytes, bytes]:
    """Content hash -> bytes of a column, of all shards of a folder."""
    tables = [parquet.read_table(file, columns=["key", column]) for file in shards.glob("*.parquet")]
    rows = [row for table in tables for row in table.to_pylist()]
    return {row["key"]: np.asarray(row[column]).tobytes() for row in rows}


@pytest.mark.slow
def test_a_missing_object_is_one_named_row_and_a_dead_server_one_error(
    storage: S3Server, folder: Path, tmp_path: Path
) -> None:
    table = tmp_path / "t.csv"
    rows = [f"s3://flowers/d/{name},{Path(name).parent.name}" for name in images_of(folder)]
    table.write_text("\n".join(["path,label", *rows, "s3://flowers/d/gone.png,red"]))
    data = hs.open_data(table)
    scanned = scan(data.files(), cache=tmp_path / "cache")
    assert scanned.faults == {data.paths.index("s3://flowers/d/gone.png"): "not found (404)"}
    predictions = small_model(image_size=32).predict(["s3://flowers/d/blue/0.png", "s3://flowers/d/gone.png"])
    assert [prediction.error for prediction in predictions] == [None, "not found (404)"]
    storage.stop()
    started = time.monotonic()
    with pytest.raises(SourceError, match=r"^s3://flowers: cannot be reached: .*AWS_ENDPOINT_URL"):
        scan(data.files(), cache=tmp_path / "other")
    assert time.monotonic() - started < 15


@pytest.mark.slow
def test_a_command_on_a_dead_server_prints_one_line_and_ends(storage: S3Server, tmp_path: Path) -> None:
    storage.stop()
    command = [sys.executable, "-m", "headstart", "check", "s3://flowers/d", "--files-only"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "s3://flowers: cannot be reached" in done.stderr


@pytest.mark.slow
def test_a_command_on_s3_prints_no_warnings(storage: S3Server, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "headstart", "check", "s3://flowers/d.tar", "--files-only", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "Reading images" not in line] == []


@pytest.mark.slow
def test_a_table_of_web_addresses_is_read_and_each_bad_one_is_named(folder: Path, tmp_path: Path) -> None:
    with web_server(folder) as (address, _):
        paths = [f"{address}/blue/0.png?size=1", f"{address}/red/0.png", f"{address}/gone.png", f"{address}/forbidden"]
        rows = [f"{path},{label}" for path, label in zip(paths, ["blue", "red", "red", "red"], strict=True)]
        (tmp_path / "t.csv").write_text("\n".join(["url,label", *rows]))
        data = hs.open_data(tmp_path / "t.csv", path_column="url")
        scanned = scan(data.files(), cache=tmp_path / "cache")
        faults = {data.paths[place]: fault for place, fault in scanned.faults.items()}
        assert faults == {paths[2]: "not found (404)", paths[3]: "refused by the server (403)"}
        assert read_image(paths[0]) == (folder / "blue" / "0.png").read_bytes()


def test_archives_and_tables_on_a_web_server_are_opened(folder: Path, tmp_path: Path) -> None:
    images = images_of(folder)
    write_zip(tmp_path / "d.zip", images)
    write_parquet(tmp_path / "d.parquet", images)
    with web_server(tmp_path) as (address, _):  # a server without ranges
        for name in ("d.zip", "d.parquet"):
            data = hs.open_data(f"{address}/{name}")
            assert data.label_names() == ["blue"] * 12 + ["red"] * 12
            assert read_image(data.files()[13]) == images["red/1.png"]
        with pytest.raises(SourceError, match="has no list of files"):
            hs.open_data(f"{address}/folder")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gs", "hf"])
def test_google_storage_and_the_hub_give_the_images_of_the_local_folder(
    kind: str, folder: Path, tmp_path: Path
) -> None:
    images = images_of(folder)
    files = {f"d/{name}": data for name, data in images.items()}
    files["d.tar"] = write_tar(tmp_path / "d.tar", images.items()).read_bytes()
    files["t/train.parquet"] = write_parquet(tmp_path / "d.parquet", images).read_bytes()
    server, base = {"gs": (gs_server, "gs://flowers"), "hf": (dataset_hub, f"hf://datasets/{REPOSITORY}")}[kind]
    expected = hs.check(folder, files_only=True, cache=tmp_path / "local").scanned.keys
    with server(files):
        for source in ("d", "d.tar", "t", "t/train.parquet", "*.tar"):
            data = hs.open_data(f"{base}/{source}")
            assert data.label_names() == ["blue"] * 12 + ["red"] * 12
            assert (
                hs.check(data, files_only=True, cache=tmp_path / "caches" / source.strip("*.")).scanned.keys == expected
            ), source
        with pytest.raises(UnreadableImage, match=r"gone\.png: not found \(404\)"):
            read_image(f"{base}/d/gone.png")
        with pytest.raises(DataError, match="no such file or folder, or an empty one"):
            hs.open_data(f"{base}/nothing")


@pytest.mark.slow
def test_google_storage_that_refuses_or_is_gone_is_one_error_within_seconds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with gs_server({}):
        with pytest.raises(SourceError, match=r"gs://private: access denied .*FSSPEC_GS_TOKEN=anon"):
            read_image("gs://private/a.png")
        remote.close_connections()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
        patch.setenv("FSSPEC_GS_TOKEN", "anon")
        started = time.monotonic()
        with pytest.raises(SourceError, match=r"gs://flowers: cannot be reached: .*after 4 attempts"):
            read_image("gs://flowers/a.png")
    assert time.monotonic() - started < 15
    assert [record for record in caplog.records if record.name.startswith("gcsfs")] == []


@pytest.mark.parametrize(("scheme", "library"), [("s3", "s3fs"), ("gs", "gcsfs"), ("https", "aiohttp")])
def test_a_library_that_is_missing_is_named(scheme: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = remote.SCHEMES[scheme].extra
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=rf'needs {library}.*pip install "headstart\[{extra}\]"'):
        read_image(f"{scheme}://bucket/a.png")


def test_a_busy_server_is_asked_again_a_few_times(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BACKOFF_SECONDS", 0.001)
    with web_server(folder) as (address, requested):
        with pytest.raises(SourceError, match=r"http://127.0.0.1:\d+: .*503.*after 4 attempts"):
            read_image(f"{address}/busy")
        assert len(requested) == remote.ATTEMPTS


def test_a_web_server_that_is_gone_is_not_a_missing_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BACKOFF_SECONDS", 0.0)
    with web_server(folder) as (address, _):
        for path in ("none.zip", "forbidden/a.zip"):
            with pytest.raises(DataError, match=rf"{path}: not found, or refused by the server"):
                hs.open_data(f"{address}/{path}")
        with pytest.raises(UnreadableImage, match=r"refused by the server \(403\)"):
            read_image(f"{address}/forbidden/a.zip::cat/1.png")
    for use in (hs.open_data, find_images):
        with pytest.raises(SourceError, match=r"127\.0\.0\.1:\d+: cannot be reached: .*after 4 attempts"):
            use(f"{address}/a.zip")  # type: ignore[operator]


@pytest.mark.parametrize("address", ["s3://", "s3:///", "https://"])
def test_a_url_without_a_bucket_is_named(address: str) -> None:
    with pytest.raises(OptionError, match=f"^{address}: names no bucket or host"):
        hs.open_data(address)


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(SourceError, match=r"ftp:// is not supported. Supported: s3://"):
        hs.open_data("ftp://host/folder")


def test_a_url_that_is_none_is_a_fault_of_one_image() -> None:
    with pytest.raises((UnreadableImage, DataError), match="not a valid URL"):
        read_image("http://[broken/a.png")
