"""``headstart cache``: lists, verifies and clears."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from small_stores import ROW, fill, keys, open_store, rows, simulate_disk, write_plan_file

from headstart.cache.entries import cache_entries, size_text
from headstart.cli import main as cli


@pytest.fixture(autouse=True)
def disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    return simulate_disk(monkeypatch)


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "cache"
    monkeypatch.setenv("HEADSTART_CACHE", str(root))
    fill(root, "resnet18", hours=1, count=3, kind="features")
    fill(root, "resnet34", hours=72, kind="features")
    fill(root, "resnet50", hours=48, count=200, kind="activations")
    fill(root, "resnet50", hours=24, kind="pixels")
    return root


def command(*arguments: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["headstart", "cache", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    status = stop.value.code or 0
    assert isinstance(status, int)
    assert (err == "") == (status == 0)
    return status, out + err


def rewrite(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_the_command_lists_the_last_used_first_with_total_limit_and_place(
    full: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSTART_CACHE_LIMIT", "0.5")
    status, out = command(capsys=capsys, monkeypatch=monkeypatch)
    lines = out.splitlines()
    assert status == 0
    assert lines[0].split() == ["kind", "content", "rows", "size", "last", "used"]
    day = time.strftime("%Y-%m-%d %H:%M", time.localtime(cache_entries(full)[0].used))
    assert lines[1].split() == ["features", "resnet18", "3", "30.2", "kB", *day.split()]
    assert [line.split()[0] for line in lines[1:-1]] == ["features", "pixels", "activations", "features"]
    assert "2.0 MB" in lines[3]
    assert lines[-1] == f"The cache at {full} holds 2.1 MB; its limit is 500.0 MB."


def test_the_command_in_json(full: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    status, out = command("--json", "--kind", "activations", "--kind", "pixels", capsys=capsys, monkeypatch=monkeypatch)
    told = json.loads(out)
    entries = cache_entries(full)
    assert status == 0
    assert told["cache"] == str(full)
    assert (told["limit"], told["bytes"], told["freed"]) == (50e9, sum(e.bytes for e in entries), 0)
    assert [e["kind"] for e in told["entries"]] == ["pixels", "activations"]
    assert told["entries"][1] == {
        "kind": "activations",
        "name": entries[2].name,
        "what": "resnet50",
        "about": {"architecture": "resnet50"},
        "rows": 200,
        "bytes": entries[2].bytes,
        "used": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(entries[2].used)),
        "path": str(entries[2].path),
    }


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ([], []),
        (["--kind", "activations"], ["features", "pixels", "features"]),
        (["--kind", "activations", "--kind", "pixels"], ["features", "features"]),
        (["--older", "1.5"], ["features", "pixels"]),
        (["--older", "2.5", "--kind", "activations"], ["features", "pixels", "activations", "features"]),
        (["--older", "2.5", "--kind", "features"], ["features", "pixels", "activations"]),
    ],
)
def test_clearing_takes_what_was_asked_for_and_nothing_else(
    full: Path,
    arguments: list[str],
    left: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = cache_entries(full)
    status, _ = command(*arguments, capsys=capsys, monkeypatch=monkeypatch)
    assert cache_entries(full) == before, "removed without --clear"
    status, out = command("--clear", *arguments, capsys=capsys, monkeypatch=monkeypatch)
    after = cache_entries(full)
    assert status == 0
    assert [entry.kind for entry in after] == left
    gone = sum(e.bytes for e in before) - sum(e.bytes for e in after)
    count = len(before) - len(after)
    assert f"Removed {count} {'entry' if count == 1 else 'entries'}, {size_text(gone)}." in out
    assert ("No entry has that kind and age. Kinds in the cache: activations, features, pixels." in out) == (count == 0)
    assert f"holds {size_text(sum(e.bytes for e in after))}; its limit is 50.0 GB" in out


def test_clearing_in_json_names_what_was_removed(
    full: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (pixels,) = [e for e in cache_entries(full) if e.kind == "pixels"]
    _, out = command("--clear", "--kind", "pixels", "--json", capsys=capsys, monkeypatch=monkeypatch)
    told = json.loads(out)
    assert [e["path"] for e in told["removed"]] == [str(pixels.path)]
    assert told["freed"] == pixels.bytes
    assert told["bytes"] == sum(e.bytes for e in cache_entries(full))


def test_an_empty_cache_says_so_and_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "none"))
    for arguments in ([], ["--clear"]):
        assert command(*arguments, capsys=capsys, monkeypatch=monkeypatch) == (
            0,
            f"The cache at {tmp_path / 'none'} is empty.\n",
        )
    assert json.loads(command("--json", capsys=capsys, monkeypatch=monkeypatch)[1])["entries"] == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "limit", "status", "says"),
    [
        (["--clear"], "lots", 1, "Error: HEADSTART_CACHE_LIMIT is 'lots': expected"),
        (["--older", "-1"], "1", 2, "--older"),
        (["--older", "soon"], "1", 2, "--older"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_removed(
    full: Path,
    arguments: list[str],
    limit: str,
    status: int,
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HEADSTART_CACHE_LIMIT", limit)
    code, out = command(*arguments, capsys=capsys, monkeypatch=monkeypatch)
    assert (code, says in out) == (status, True)
    assert len(cache_entries(full)) == 4


def test_the_command_is_quick_and_imports_no_torch(full: Path) -> None:
    script = (
        "import sys; sys.argv = ['headstart', 'cache']\nfrom headstart.cli.main import main\ntry: main()\n"
        "except SystemExit: pass\nsys.exit(any(m in sys.modules for m in ('torch', 'timm', 'sklearn', 'PIL')))"
    )
    times, bare = [], []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import click, jinja2, numpy"], check=True)
        bare.append(time.perf_counter() - started)
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        times.append(time.perf_counter() - started)
        assert done.returncode == 0, "something heavy was imported"
        assert "activations" in done.stdout
    assert min(times) < max(1, 3 * min(bare))  # a slow machine is slow at both


def test_verifying_names_damaged_entries_removes_their_rows_and_leaves_the_others(
    full: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plan_file(full / "engines" / f"{'a' * 24}.safetensors")
    status, out = command("--verify", capsys=capsys, monkeypatch=monkeypatch)
    assert (status, out) == (0, "Verified 5 entries, 205 rows: none damaged.\n")
    (stored,) = (e for e in cache_entries(full) if e.kind == "activations")
    rewrite(stored.path / "rows.bin", 7 * ROW + 3)
    rewrite(stored.path / "rows.bin", 9 * ROW)
    held = open_store(full, "resnet50", "activations")
    arguments = ["headstart", "cache", "--verify", "--kind", "activations"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out = capsys.readouterr().out
    assert stop.value.code == 1
    assert f"{stored.path} (activations, resnet50): 2 of 200 rows were damaged and were removed." in out
    assert "Verified 1 entry, 200 rows: 1 entry damaged." in out
    assert command("--verify", capsys=capsys, monkeypatch=monkeypatch)[0] == 0
    for opened in (held, open_store(full, "resnet50", "activations")):
        opened.drop_damaged(keys(*range(200)))
        assert opened.missing(keys(*range(200))) == [7, 9]
        assert np.array_equal(opened.read(keys(8, 10)), rows(8, 10))


def test_verifying_removes_what_cannot_be_verified_and_passes_over_older_versions(
    full: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = write_plan_file(full / "engines" / f"{'a' * 24}.safetensors")
    rewrite(plan, -1)
    old = full / "features" / ("b" * 24)
    old.mkdir()
    (old / "about.json").write_text('{"architecture": "resnet18"}')
    (old / "keys.bin").write_bytes(bytes(32))
    (old / "rows.bin").write_bytes(bytes(64))
    (pixels,) = (e.path for e in cache_entries(full) if e.kind == "pixels")
    (pixels / "about.json").write_bytes(b"\xff\xfe")
    monkeypatch.setattr(sys, "argv", ["headstart", "cache", "--verify", "--json"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    told = json.loads(capsys.readouterr().out)
    assert (stop.value.code, told["sound"]) == (1, False)
    faults = {one["path"]: one["fault"] for one in told["verified"] if one["fault"]}
    assert faults == {
        str(plan): "its checksum is wrong; the entry was removed",
        str(pixels): "about.json is damaged; the entry was removed",
    }
    assert [one["path"] for one in told["verified"] if one["older version"]] == [str(old)]
    assert not plan.exists()
    assert not pixels.exists()
    status, out = command("--verify", capsys=capsys, monkeypatch=monkeypatch)
    assert status == 0
    assert "1 entry of an older version are not used. Remove them with headstart cache --clear." in out


def test_verifying_and_clearing_at_once_is_a_named_mistake(
    full: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out = command("--verify", "--clear", capsys=capsys, monkeypatch=monkeypatch)
    assert status == 2
    assert "choose either --verify or --clear" in out
    assert len(cache_entries(full)) == 4


def test_an_entry_with_strange_words_is_listed_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
    for number, about in enumerate(
        ('{"architecture": "\\ud800\\n\\u001b[2J"}', "[" * 100_000, '{"pixels": {"height": []}}')
    ):
        folder = fill(tmp_path, str(number), hours=1)
        (folder / "about.json").write_text(about)
        os.utime(folder / "used", (1e18, 1e18) if number else (1, 1))
    status, out = command(capsys=capsys, monkeypatch=monkeypatch)
    assert status == 0
    assert len(out.splitlines()) == 5
    assert "\x1b" not in out
