"""Work for tests of workers, in a module that worker processes can import."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from headstart.cache.keys import content_key
from headstart.distributed.shard_tables import feature_table, unreadable_table
from headstart.distributed.shards import ImageRow, Shard
from headstart.distributed.work import ShardTables
from headstart.errors import OptionError


@dataclass(frozen=True)
class StubWork:
    """Features that follow from the path; paths that start with "bad" cannot be read.

    Attributes:
        journal: file to which each worker appends a line "process path" when it begins a shard.
        deadly: path at whose shard the worker kills itself, the first ``deaths`` times.
        deaths: see ``deadly``.
        seconds: that each shard takes.
        fails: whether every shard raises an OptionError.
    """

    journal: str
    deadly: str = ""
    deaths: int = 1
    seconds: float = 0.0
    fails: bool = False
    description: dict[str, Any] = field(default_factory=lambda: {"stub": 1})

    def computer(self, device: str) -> StubComputer:
        """See ``Work``."""
        assert device in ("auto", "cpu")
        return StubComputer(self)


@dataclass(frozen=True)
class StubComputer:
    work: StubWork

    def __call__(self, rows: Sequence[ImageRow]) -> ShardTables:
        with open(self.work.journal, "a") as file:
            file.write(f"{os.getpid()} {rows[0].path}\n")
        if self.work.fails:
            raise OptionError("not possible")
        lines = Path(self.work.journal).read_text().splitlines()
        if (
            rows[0].path == self.work.deadly
            and sum(line.endswith(f" {rows[0].path}") for line in lines) <= self.work.deaths
        ):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.work.seconds)
        good = [row for row in rows if not row.path.startswith("bad")]
        bad = [row for row in rows if row.path.startswith("bad")]
        keys = [content_key(row.path.encode()) for row in good]
        features = np.array([[len(row.path), key[0], key[1]] for row, key in zip(good, keys, strict=True)], np.float32)
        table = feature_table(good, keys, features.reshape(-1, 3), "float32")
        return ShardTables(table, unreadable_table(bad, ["no image"] * len(bad)) if bad else None)


def begun(journal: Path) -> list[str]:
    """First paths of the shards that were begun, in order."""
    return [line.partition(" ")[2] for line in journal.read_text().splitlines()] if journal.exists() else []


class SyntheticFeatures:
    """Features of three classes that are easy to tell apart, from the label and the path alone."""

    description: dict[str, Any] = {"features": "float32", "network": {"architecture": "stub"}}  # noqa: RUF012

    def here(self, _work: object, shards: Iterable[Shard]) -> Iterator[tuple[Shard, ShardTables]]:
        """Computes shards in this process."""
        middles = np.random.default_rng(5).normal(size=(3, 64))
        for shard in shards:
            rng = np.random.default_rng(shard.number)
            labels = ["abc".index(row.label) for row in shard.rows]
            features = (middles[labels] + 0.4 * rng.normal(size=(len(labels), 64))).astype(np.float32)
            keys = [content_key(row.path.encode()) for row in shard.rows]
            yield shard, ShardTables(feature_table(shard.rows, keys, features, "float32"), None)
