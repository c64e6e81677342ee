"""The page on clusters: its Slurm script and its Kubernetes job start every part of the work once."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import all_commands
from documents import ROOT, blocks_of

PAGE = ROOT / "docs" / "scale.md"


def block(language: str) -> str:
    (text,) = [own.text for own in blocks_of(PAGE) if own.language == language]
    return text


def started(script: str, place: Path, **environment: str) -> dict[str, Any]:
    """Options of the command that a script starts, as the command line takes them."""
    program = place / "headstart"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    path = f"{place}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-euc", script]
    done = subprocess.run(
        command, env=os.environ | {"PATH": path} | environment, capture_output=True, text=True, check=True
    )
    verb, *words = done.stdout.splitlines()
    return all_commands()[verb].make_context(verb, words).params


def test_the_slurm_array_starts_every_part_once(tmp_path: Path) -> None:
    script = block("slurm")
    first, last = map(int, re.findall(r"^#SBATCH --array=(\d+)-(\d+)$", script, re.MULTILINE)[0])
    given = [started(script, tmp_path, SLURM_ARRAY_TASK_ID=str(task)) for task in (first, 3, last)]
    assert [own["part"] for own in given] == [(1, 16), (3, 16), (16, 16)]
    assert all(own["out"] == Path("/shared/features") for own in given)


def test_the_kubernetes_job_starts_every_part_once(tmp_path: Path) -> None:
    job = yaml.safe_load(block("yaml"))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    count = job["spec"]["completions"]
    assert job["spec"]["completionMode"] == "Indexed"
    assert container["command"] == ["sh", "-c"]
    (script,) = container["args"]
    given = [started(script, tmp_path, JOB_COMPLETION_INDEX=str(index)) for index in (0, count - 1)]
    assert [own["part"] for own in given] == [(1, count), (count, count)]
    (mount,) = container["volumeMounts"]
    assert given[0]["out"].is_relative_to(mount["mountPath"])


def test_a_script_that_is_wrong_is_seen(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no-such-option"):
        started("headstart extract d --no-such-option", tmp_path)
    with pytest.raises(Exception, match="17/16"):
        started('headstart extract d --out f --part "$TASK/16"', tmp_path, TASK="17")


def test_the_arithmetic_of_the_page_is_right() -> None:
    """Every "a / b = c" and "a x b = c" of its tables, within rounding."""
    text = re.sub(r"processors|GB|USD|,", "", PAGE.read_text())
    found = re.findall(r"([\d.]+) +([/x]) +([\d.]+) += +([\d.]+)", text)
    assert len(found) >= 10
    for first, sign, second, result in found:
        value = float(first) / float(second) if sign == "/" else float(first) * float(second)
        digits = len(result.partition(".")[2])
        assert abs(value - float(result)) <= 0.51 * 10**-digits, (first, sign, second, result, value)
