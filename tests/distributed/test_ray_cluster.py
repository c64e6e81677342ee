"""Shards on a Ray cluster: a machine that is lost under work costs only the shards under way."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from stub_work import StubWork, begun

from headstart.distributed.compute import compute_shards
from headstart.distributed.ray_cluster import compute_on_ray
from headstart.distributed.shards import ImageRow
from headstart.errors import OptionError, WorkerError
from headstart.progress import SilentProgress

pytestmark = pytest.mark.slow

ROWS = [ImageRow(f"{i}.jpg") for i in range(60)]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two machines with one processor each; the second one can be removed."""
    import ray
    from ray.cluster_utils import Cluster

    support = str(Path(__file__).parents[1] / "support")
    monkeypatch.setenv("PYTHONPATH", support)  # the workers import the stub
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    found.second = found.add_node(num_cpus=1)
    yield found
    ray.shutdown()
    found.shutdown()


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def run(folder: Path, work: StubWork, engine: Any) -> None:
    compute_shards(work, ROWS, folder, engine, total=len(ROWS), shard_size=3, progress=SilentProgress())


def test_a_lost_machine_costs_only_the_shards_under_way(cluster: Any, tmp_path: Path) -> None:
    work = StubWork(str(tmp_path / "journal"), seconds=0.3)

    def lose() -> None:
        while len({line.split()[0] for line in lines(tmp_path / "journal")}) < 2:
            time.sleep(0.05)
        time.sleep(0.5)
        cluster.remove_node(cluster.second, allow_graceful=False)

    thread = threading.Thread(target=lose)
    thread.start()
    run(tmp_path / "out", work, partial(compute_on_ray, address=cluster.address, device="cpu"))
    thread.join()
    counts = Counter(begun(tmp_path / "journal"))
    assert len(counts) == 20
    assert sum(counts.values()) - 20 <= 2

    def here(work: StubWork, shards: Any) -> Any:
        for shard in shards:
            yield shard, work.computer("cpu")(shard.rows)

    run(tmp_path / "here", StubWork(str(tmp_path / "other")), here)
    assert content(tmp_path / "out") == content(tmp_path / "here")


def lines(journal: Path) -> list[str]:
    return journal.read_text().splitlines() if journal.exists() else []


def test_an_error_of_a_worker_is_the_error_of_the_work(cluster: Any, tmp_path: Path) -> None:
    work = StubWork(str(tmp_path / "journal"), fails=True)
    with pytest.raises(OptionError, match="not possible"):
        run(tmp_path / "out", work, partial(compute_on_ray, address=cluster.address, device="cpu"))
    work = StubWork(str(tmp_path / "journal"), deadly="9.jpg", deaths=99)
    with pytest.raises(WorkerError, match=r"from 9\.jpg on"):
        run(tmp_path / "again", work, partial(compute_on_ray, address=cluster.address, device="cpu"))


def test_a_cluster_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"ray 127\.0\.0\.1:1: cannot be reached"):
        run(tmp_path / "out", StubWork(str(tmp_path / "j")), partial(compute_on_ray, address="127.0.0.1:1"))
