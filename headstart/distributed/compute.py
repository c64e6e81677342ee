"""Work in shards: computes those that are missing in a folder, by any engine, and writes them and the manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from headstart.distributed.shard_tables import first_unreadable, summary_of, write_shard
from headstart.distributed.shards import (
    MANIFEST_FILE,
    SHARD_SIZE,
    UNREADABLE,
    ImageRow,
    Shard,
    ShardSummary,
    begin_work,
    cut_into_shards,
    remove_others,
    write_manifest,
)
from headstart.distributed.work import ShardTables, Work
from headstart.errors import DataError, OutputError
from headstart.file_lock import lock_held
from headstart.files import not_written
from headstart.progress import Progress


class ShardEngine(Protocol):
    """Where shards are computed: in this process, in local processes, or on a cluster."""

    def __call__(self, work: Work, shards: Iterable[Shard]) -> Iterator[tuple[Shard, ShardTables]]:
        """Yields the tables of shards as they are finished, in any order."""


@dataclass(frozen=True)
class ShardedOutput:
    """A folder of finished shards.

    Attributes:
        folder: with ``manifest.json``, a Parquet file for each shard, and a folder of unreadable images if there are
            any.
        num_rows: images that could be read.
        num_unreadable: images that could not.
        num_computed: images of shards that were computed now, and not by an earlier call.
        is_finished: whether every shard is there, and the manifest; otherwise other parts are missing.
    """

    folder: Path
    num_rows: int
    num_unreadable: int
    num_computed: int
    is_finished: bool = True


@dataclass(frozen=True)
class Part:
    """A part of the shards, for one of several independent processes such as the tasks of a job array.

    Attributes:
        number: of the part, from 1 on: the shards number - 1, number - 1 + count, and so on.
        count: number of parts.
    """

    number: int
    count: int

    def has(self, shard: Shard) -> bool:
        """Whether the part has a shard."""
        return shard.number % self.count == self.number - 1


WHOLE = Part(1, 1)


def compute_shards(
    work: Work,
    rows: Iterable[ImageRow],
    folder: Path,
    engine: ShardEngine,
    *,
    total: int,
    images: Sequence[str] = (),
    shard_size: int = SHARD_SIZE,
    part: Part = WHOLE,
    progress: Progress,
) -> ShardedOutput:
    """Computes the shards of some images that are not in a folder yet, and writes the manifest once all are there.

    Args:
        work: what is computed.
        rows: the images, in order; taken as they are needed.
        folder: of the output; that of the same work continues it.
        engine: computes shards.
        total: number of images, for the progress.
        images: absolute addresses of the folders, archives and tables that they are in.
        shard_size: images of a shard, at least 1.
        part: which shards are computed here.
        progress: receives a step for each shard.

    Raises:
        OptionError: the shards of the folder have another size.
        OutputError: the folder has another kind of content, cannot be written, or another process is computing it.
        WorkerError: see ``processes.compute_in_processes``.
    """
    begin_work(folder, work.description, images=images, shard_size=shard_size)
    with _alone(folder, part):
        found = _FinishedShards(folder, part, progress)
        shards = cut_into_shards(rows, shard_size, work.description)
        try:
            with progress.task("Computing shards", -(-total // part.count)) as advance:
                for shard, tables in engine(work, found.missing(shards, advance)):
                    with _writing(folder):
                        write_shard(folder, shard, tables.table, tables.unreadable)
                    found.add(shard, advance)
        except KeyboardInterrupt:
            progress.say(f"What is finished is kept in {folder}: the same command continues.")
            raise
        if found.is_complete:
            with _writing(folder):
                remove_others(folder, write_manifest(folder, work.description, found.in_order()))
        return found.output()


def require_readable(output: ShardedOutput) -> None:
    """Checks finished work: an address that is wrong for all images is an error, and not an empty output.

    Raises:
        DataError: no image could be read; names the first one and why.
    """
    if output.is_finished and output.num_unreadable and not output.num_rows:
        path, reason = first_unreadable(output.folder)
        raise DataError(
            f"none of the {output.num_unreadable:,} image(s) can be read. {path}: {reason}. All are listed in "
            f"{output.folder / UNREADABLE}; correct the addresses, or remove {output.folder} to read them again."
        )


@contextmanager
def _alone(folder: Path, part: Part) -> Iterator[None]:
    """Keeps the same command from computing a part twice at the same time; the lock file goes with the block."""
    file = folder / f".lock-{part.number}-of-{part.count}"
    with lock_held(file, OutputError(f"{folder}: another process is computing it. Wait for it, or stop it first.")):
        yield
        with suppress(OSError):
            file.unlink()


class _FinishedShards:
    """The finished shards of a folder, and whether those of other parts are there."""

    def __init__(self, folder: Path, part: Part, progress: Progress) -> None:
        self.folder, self.part, self.progress = folder, part, progress
        self.summaries: dict[int, ShardSummary] = {}
        self.num_computed = 0
        self.is_complete = True

    def missing(self, shards: Iterable[Shard], advance: Callable[[int], None]) -> Iterator[Shard]:
        """Those that are to be computed."""
        kept = 0
        for shard in shards:
            summary = summary_of(self.folder, shard)
            if summary is not None:
                self.summaries[shard.number] = summary
            if not self.part.has(shard):
                self.is_complete &= summary is not None
            elif summary is None:
                with _writing(self.folder):
                    (self.folder / MANIFEST_FILE).unlink(missing_ok=True)  # of images that have changed since
                yield shard
            else:
                kept += len(shard.rows)
                advance(len(shard.rows))
        if kept:
            self.progress.say(f"{kept:,} images were finished by an earlier run.")

    def in_order(self) -> list[ShardSummary]:
        """Every finished shard, in the order of the images."""
        return [self.summaries[number] for number in sorted(self.summaries)]

    def output(self) -> ShardedOutput:
        """What is there."""
        found = self.summaries.values()
        num_rows, num_unreadable = sum(one.num_rows for one in found), sum(one.num_unreadable for one in found)
        return ShardedOutput(self.folder, num_rows, num_unreadable, self.num_computed, self.is_complete)

    def add(self, shard: Shard, advance: Callable[[int], None]) -> None:
        """Takes a shard that was written."""
        summary = summary_of(self.folder, shard)
        if summary is None:
            raise OutputError(f"{shard.file(self.folder)}: is incomplete after it was written. Check the disk.")
        self.summaries[shard.number] = summary
        self.num_computed += len(shard.rows)
        advance(len(shard.rows))


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns an OSError into an error with a remedy."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{not_written(folder, error)}, then run the same command again; what is finished is kept."
        ) from error
