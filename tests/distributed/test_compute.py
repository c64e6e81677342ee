"""Work in a folder of shards: what is missing is computed, whatever was killed, and the output is the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from child_processes import workers_of
from pyarrow import parquet
from recorded_progress import RecordedProgress
from stub_work import StubWork, begun

from headstart.distributed.compute import WHOLE, Part, ShardedOutput, compute_shards, require_readable
from headstart.distributed.processes import compute_in_processes
from headstart.distributed.shards import MANIFEST_FILE, ImageRow, Shard
from headstart.distributed.work import ShardTables, Work
from headstart.errors import DataError, OptionError, OutputError, WorkerError
from headstart.progress import SilentProgress

ROWS = [ImageRow(f"{i}.jpg") for i in range(20)] + [ImageRow("bad.jpg")]


def here(work: Work, shards: Iterable[Shard]) -> Iterator[tuple[Shard, ShardTables]]:
    """Computes shards in this process, in groups and the last of a group first."""
    computer = work.computer("cpu")
    for shard in shards:
        yield shard, computer(shard.rows)


def two_processes(work: Work, shards: Iterable[Shard]) -> Iterator[tuple[Shard, ShardTables]]:
    return compute_in_processes(work, shards, workers=2, device="cpu")


def run(  # type: ignore[no-untyped-def]
    folder: Path, work: StubWork, rows: list[ImageRow], engine=here, size: int = 4, part: Part = WHOLE
) -> ShardedOutput:
    total, progress = len(rows), SilentProgress()
    return compute_shards(work, rows, folder, engine, total=total, shard_size=size, part=part, progress=progress)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_image_has_a_row_in_one_of_two_tables_and_in_order(tmp_path: Path) -> None:
    found = run(tmp_path / "out", StubWork(str(tmp_path / "journal")), ROWS)
    assert (found.num_rows, found.num_unreadable, found.num_computed) == (20, 1, 21)
    manifest = json.loads((tmp_path / "out" / MANIFEST_FILE).read_text())
    paths = [
        path
        for shard in manifest["shards"]
        for path in parquet.read_table(tmp_path / "out" / shard["file"])["path"].to_pylist()
    ]
    assert paths == [row.path for row in ROWS[:-1]]


def test_the_same_command_twice_at_a_time_is_refused_but_not_another_part(tmp_path: Path) -> None:
    def engine(work: Work, shards: Iterable[Shard]) -> Iterator[tuple[Shard, ShardTables]]:
        with pytest.raises(OutputError, match="another process is computing it"):
            run(tmp_path / "out", work, ROWS, part=Part(1, 2))
        run(tmp_path / "out", work, ROWS, part=Part(2, 2))
        yield from here(work, shards)

    work = StubWork(str(tmp_path / "journal"))
    assert run(tmp_path / "out", work, ROWS, engine, part=Part(1, 2)).is_finished
    assert not [file for file in (tmp_path / "out").iterdir() if "lock" in file.name]


def test_only_what_is_missing_is_computed(tmp_path: Path) -> None:
    work = StubWork(str(tmp_path / "journal"))
    run(tmp_path / "out", work, ROWS)
    expected = content(tmp_path / "out")
    for victim in list((tmp_path / "out").glob("*.parquet"))[:2]:
        victim.unlink()
    (tmp_path / "journal").unlink()
    assert run(tmp_path / "out", work, ROWS).num_computed in (8, 5)
    assert content(tmp_path / "out") == expected
    assert len(begun(tmp_path / "journal")) == 2


def test_changed_images_are_computed_again_and_their_old_shards_removed(tmp_path: Path) -> None:
    work = StubWork(str(tmp_path / "journal"))
    run(tmp_path / "out", work, ROWS)
    changed = [*ROWS[:5], ImageRow("new.jpg"), *ROWS[6:]]
    assert run(tmp_path / "out", work, changed).num_computed == 4
    run(tmp_path / "fresh", work, changed)
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_parts_are_computed_by_independent_processes_and_the_last_one_writes_the_manifest(tmp_path: Path) -> None:
    work = StubWork(str(tmp_path / "journal"))
    run(tmp_path / "whole", work, ROWS)

    def compute(number: int) -> ShardedOutput:
        options = {"total": 21, "shard_size": 4, "part": Part(number, 3), "progress": SilentProgress()}
        return compute_shards(work, ROWS, tmp_path / "out", here, **options)  # type: ignore[arg-type]

    first, third = compute(1), compute(3)
    assert (first.is_finished, first.num_computed) == (False, 8)
    assert not third.is_finished
    assert not (tmp_path / "out" / MANIFEST_FILE).exists()
    assert compute(2).is_finished
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_there_is_no_manifest_while_changed_images_are_computed(tmp_path: Path) -> None:
    work = StubWork(str(tmp_path / "journal"))
    run(tmp_path / "out", work, ROWS)
    with pytest.raises(OptionError):
        run(tmp_path / "out", StubWork(str(tmp_path / "journal"), fails=True), [ImageRow("new.jpg"), *ROWS])
    assert not (tmp_path / "out" / MANIFEST_FILE).exists()


def test_files_that_a_killed_process_left_half_written_are_removed_at_the_end(tmp_path: Path) -> None:
    rows, out = [ImageRow(f"{i}.jpg") for i in range(4)], tmp_path / "out"
    work = StubWork(str(tmp_path / "journal"))
    run(out, work, rows, size=2)
    expected = content(out)
    next(out.glob("*.parquet")).unlink()
    for name in (".1.parquet.9999999.partial", "unreadable/.2.parquet.9999999.partial"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(b"PAR1")
    run(out, work, rows, size=2)
    assert content(out) == expected


def test_what_is_kept_is_said(tmp_path: Path) -> None:
    work, progress = StubWork(str(tmp_path / "journal")), RecordedProgress()
    run(tmp_path / "out", work, ROWS)
    compute_shards(work, ROWS, tmp_path / "out", here, total=21, shard_size=4, progress=progress)
    assert progress.said == ["21 images were finished by an earlier run."]


def test_a_disk_that_is_full_ends_in_an_error_and_the_work_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headstart.distributed import compute as module

    work, real, calls = StubWork(str(tmp_path / "journal")), module.write_shard, Counter[str]()

    def full(*arguments: object) -> None:
        calls["write"] += 1
        if calls["write"] == 3:
            raise OSError(28, "No space left on device")
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "write_shard", full)
    with pytest.raises(OutputError, match=r"Free some space.*what is finished is kept"):
        run(tmp_path / "out", work, ROWS)
    assert not (tmp_path / "out" / MANIFEST_FILE).exists()
    assert run(tmp_path / "out", work, ROWS).num_computed == 13


@pytest.mark.slow
def test_processes_give_the_same_files_and_a_killed_one_is_replaced(tmp_path: Path) -> None:
    run(tmp_path / "here", StubWork(str(tmp_path / "a")), ROWS)
    run(tmp_path / "two", StubWork(str(tmp_path / "b"), deadly="8.jpg", deaths=2), ROWS, two_processes)
    assert content(tmp_path / "two") == content(tmp_path / "here")
    counts = Counter(begun(tmp_path / "b"))
    assert counts["8.jpg"] == 3


@pytest.mark.slow
def test_a_shard_that_kills_every_worker_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    work = StubWork(
        str(tmp_path / "journal"), deadly="8.jpg", deaths=99, seconds=0.1
    )  # the others are slow and innocent
    with pytest.raises(WorkerError, match=r"from 8\.jpg on"):
        run(tmp_path / "out", work, ROWS, two_processes)
    assert len(list((tmp_path / "out").glob("*.parquet"))) >= 2


@pytest.mark.slow
def test_an_error_of_a_worker_is_the_error_of_the_work(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="not possible"):
        run(tmp_path / "out", StubWork(str(tmp_path / "journal"), fails=True), ROWS, two_processes)


DRIVER = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from stub_work import StubWork
from headstart.distributed.compute import compute_shards
from headstart.distributed.processes import compute_in_processes
from headstart.distributed.shards import ImageRow
from headstart.progress import SilentProgress
if __name__ == "__main__":
    rows = [ImageRow(f"{{i}}.jpg") for i in range(60)]
    engine = lambda work, shards: compute_in_processes(work, shards, workers=2, device="cpu")
    try:
        compute_shards(StubWork({journal!r}, seconds={seconds}), rows, Path({out!r}), engine, total=60, shard_size=2,
                       progress=SilentProgress())
    except KeyboardInterrupt:
        sys.exit(130)
"""


def test_work_in_which_no_image_can_be_read_is_an_error_that_names_the_first(tmp_path: Path) -> None:
    rows, journal = [ImageRow(f"bad{i}.jpg") for i in range(5)], str(tmp_path / "journal")
    for _ in range(2):  # also when the same command finds it finished
        output = run(tmp_path / "out", StubWork(journal), rows, size=2)
        with pytest.raises(
            DataError, match=r"^none of the 5 image\(s\) can be read\. bad0\.jpg: .*or remove .*out to read"
        ):
            require_readable(output)
    require_readable(run(tmp_path / "other", StubWork(journal), [*rows, ROWS[0]], size=2))
    require_readable(run(tmp_path / "none", StubWork(journal), [], size=2))


def test_ctrl_c_says_that_the_same_command_continues(tmp_path: Path) -> None:
    def stopped(work: Work, shards: Iterable[Shard]) -> Iterator[tuple[Shard, ShardTables]]:
        yield next(here(work, shards))
        raise KeyboardInterrupt

    progress, work = RecordedProgress(), StubWork(str(tmp_path / "journal"))
    with pytest.raises(KeyboardInterrupt):
        compute_shards(work, ROWS, tmp_path / "out", stopped, total=len(ROWS), shard_size=4, progress=progress)
    assert progress.said[-1] == f"What is finished is kept in {tmp_path / 'out'}: the same command continues."
    assert run(tmp_path / "out", work, ROWS).num_computed == len(ROWS) - 4


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["workers are started", "workers compute"])
def test_ctrl_c_ends_the_workers_at_once_and_without_a_traceback(tmp_path: Path, moment: str) -> None:
    journal, script = tmp_path / "journal", tmp_path / "driver.py"
    script.write_text(DRIVER.format(path=sys.path, journal=str(journal), out=str(tmp_path / "out"), seconds=3600))
    driver = subprocess.Popen(
        [sys.executable, str(script)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # background jobs ignore it
    )
    try:
        computing = moment == "workers compute"
        wait_until(lambda: len(begun(journal) if computing else workers_of(driver.pid)) >= 2 or driver.poll())
        os.killpg(driver.pid, signal.SIGINT)
        _, err = driver.communicate(timeout=120)  # of the workers too, which have the same stderr
    finally:
        driver.kill()
    assert (driver.returncode, err) == (130, "")


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_workers_and_then_the_driver_killed_at_random_moments(tmp_path: Path, seed: int) -> None:
    """The output equals that of undisturbed work, and nothing is done twice but the shards under way."""
    rows, draw = [ImageRow(f"{i}.jpg") for i in range(60)], random.Random(seed)
    run(tmp_path / "undisturbed", StubWork(str(tmp_path / "a")), rows, size=2)
    out, journal = tmp_path / "out", tmp_path / "journal"
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.format(path=sys.path, journal=str(journal), out=str(out), seconds=0.05))
    driver = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    wait_for_shards(out, 1 + draw.randrange(8), driver)
    before = set(begun(journal))
    os.kill(int(journal.read_text().splitlines()[-1].split()[0]), signal.SIGKILL)
    wait_for_shards(out, len(list(out.glob("*.parquet"))) + 1 + draw.randrange(8), driver)
    driver.kill()
    driver.wait()
    finished = len(list(out.glob("*.parquet")))
    assert finished < 30
    assert not (out / MANIFEST_FILE).exists()
    worker = int(journal.read_text().splitlines()[-1].split()[0])
    wait_until(lambda: not is_alive(worker))
    assert run(out, StubWork(str(journal)), rows, size=2).num_computed == 2 * (30 - finished)
    assert content(out) == content(tmp_path / "undisturbed")
    again = Counter(begun(journal))
    assert sum(count - 1 for count in again.values()) <= 2 * 4  # two workers with two shards each, twice
    assert before <= set(again)


def wait_for_shards(out: Path, count: int, driver: subprocess.Popen[bytes]) -> None:
    wait_until(lambda: len(list(out.glob("*.parquet"))) >= count or driver.poll() is not None)


def wait_until(condition) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
