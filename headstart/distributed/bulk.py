"""Features and predictions of many images, in shards, by local processes or a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial

from headstart.backbone.pixel_net import FeatureNet
from headstart.data.dataset import Dataset
from headstart.data.sources.addresses import absolute, is_url, split_address
from headstart.data.sources.containers import MAX_OPEN
from headstart.data.sources.stores import store_of
from headstart.data.streamed_dataset import StreamedDataset, StreamedPaths
from headstart.distributed.compute import WHOLE, Part, ShardedOutput, ShardEngine, compute_shards, require_readable
from headstart.distributed.processes import check_workers, compute_in_processes
from headstart.distributed.ray_cluster import compute_on_ray
from headstart.distributed.shard_tables import FEATURE_TYPES, FeatureType
from headstart.distributed.shards import SHARD_SIZE, ImageRow
from headstart.distributed.work import FeatureWork, PredictionWork
from headstart.errors import OptionError, UnreadableImage
from headstart.extras import require_extra
from headstart.features.export import check_row_pooling
from headstart.files import UserPath, user_path
from headstart.model import Model
from headstart.progress import Progress, SilentProgress


def extract_shards(
    net: FeatureNet,
    dataset: Dataset | StreamedDataset,
    out: UserPath,
    *,
    dtype: FeatureType = "float16",
    engine: ShardEngine,
    shard_size: int = SHARD_SIZE,
    part: Part = WHOLE,
    progress: Progress | None = None,
) -> ShardedOutput:
    """Computes the features of all readable images of a data set, in shards.

    Each shard is a Parquet file with the columns path, key (content hash), label, split, group and features.

    Args:
        net: uint8 pixels -> features, pooled.
        dataset: labelled images; with a ``StreamedDataset``, memory does not grow with their number.
        out: the output folder; one of the same work is continued.
        dtype: of the features.
        engine: see ``shard_engine``.
        shard_size: images of a shard.
        part: which shards are computed; the last of several processes writes the manifest.
        progress: receives progress updates.

    Raises:
        DataError: no image can be read.
        OptionError: an option is invalid, or a feature exceeds the range of float16.
        OutputError: the folder has the output of other images or another network, or cannot be written.
        WorkerError: workers were lost again and again.
    """
    _check_size(shard_size)
    if dtype not in FEATURE_TYPES:
        raise OptionError(f"dtype {dtype!r}: expected {' or '.join(FEATURE_TYPES)}.")
    check_row_pooling(net.spec.pool)
    progress = progress or SilentProgress()
    for finding in dataset.findings:
        progress.say(finding.line)
    output = compute_shards(
        FeatureWork.of(net, dtype),
        _rows_of(dataset),
        user_path(out),
        engine,
        total=len(dataset),
        images=[absolute(str(dataset.root))],
        shard_size=shard_size,
        part=part,
        progress=progress,
    )
    require_readable(output)
    return output


def predict_shards(
    model: Model,
    paths: Sequence[str] | StreamedPaths,
    out: UserPath,
    *,
    top: int = 1,
    engine: ShardEngine,
    shard_size: int = SHARD_SIZE,
    part: Part = WHOLE,
    progress: Progress | None = None,
) -> ShardedOutput:
    """Predicts many images in shards.

    Each shard is a Parquet file with the columns path, key (content hash), label, probability, answer, outlier and
    probabilities of all classes.

    Args:
        model: the classifier.
        paths: of the images, likewise.
        out: the output folder; one of the same work is continued.
        top: number of classes that have columns.
        engine: see ``shard_engine``.
        shard_size: images of a shard.
        part: which shards are computed; the last of several processes writes the manifest.
        progress: receives progress updates.

    Raises:
        DataError, OptionError, OutputError, WorkerError: as ``extract_shards``.
    """
    _check_size(shard_size)
    version_of = _version_reader()
    output = compute_shards(
        PredictionWork.of(model, top),
        (ImageRow(path, version=version_of(path)) for path in paths),
        user_path(out),
        engine,
        total=len(paths),
        images=paths.sources if isinstance(paths, StreamedPaths) else (),
        shard_size=shard_size,
        part=part,
        progress=progress or SilentProgress(),
    )
    require_readable(output)
    return output


def shard_engine(*, workers: int | None = None, ray: str | None = None, device: str = "auto") -> ShardEngine:
    """Where shards are computed.

    Args:
        workers: number of processes; default: one on this machine, or one for each GPU or CPU of a Ray cluster.
        ray: address of a Ray cluster, "local" to start one here; None for processes of this machine.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        OptionError: the number of workers is impossible.
        MissingExtra: Ray is not installed.
    """
    require_extra("parquet", "writing shards")
    check_workers(workers)
    if ray is not None:
        require_extra("ray", "computing on Ray")
        return partial(compute_on_ray, address=ray, workers=workers, device=device)
    return partial(compute_in_processes, workers=workers or 1, device=device)


def _check_size(shard_size: object) -> None:
    if isinstance(shard_size, bool) or not isinstance(shard_size, int) or shard_size < 1:
        raise OptionError(f"shard_size {shard_size!r}: expected a whole number of at least 1.")


def _rows_of(dataset: Dataset | StreamedDataset) -> Iterator[ImageRow]:
    version_of = _version_reader()
    for path, label, split, group in dataset if isinstance(dataset, StreamedDataset) else _columns_of(dataset):
        yield ImageRow(path, label, split, group, version_of(path))


def _columns_of(dataset: Dataset) -> Iterator[tuple[str, str, str, str]]:
    nothing = [""] * len(dataset)
    columns = (dataset.files(), dataset.label_names(), dataset.splits or nothing, dataset.groups or nothing)
    return zip(*columns, strict=True)


def _version_reader() -> Callable[[str], str]:
    """Address -> version of the file, or of the archive or table that an image is in.

    Each archive is looked at once, also behind a URL. "" for a single file behind a URL, which would take a request.
    """
    of_file = lru_cache(MAX_OPEN)(_version)

    def version_of(address: str) -> str:
        file, member = split_address(address)
        return "" if is_url(file) and not member else of_file(file)

    return version_of


def _version(path: str) -> str:
    """The stamp of a file; "" if it cannot be read."""
    try:
        return " ".join(map(str, store_of(path).stamp(path)))
    except UnreadableImage:
        return ""
