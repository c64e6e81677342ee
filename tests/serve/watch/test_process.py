"""Live page of a run in a separate process, across reloads, the end of the run and a kill."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from browser import browsing, chromium, until
from commands import main
from random_images import mislabel, random_image, write_classes
from servers import serving

from headstart.engine.plan import EnginePlan
from headstart.errors import RunError
from headstart.pipeline.train_rung import emit_epoch
from headstart.runs.events import (
    EventStream,
    FindingsUpdated,
    ImagesRead,
    MistakesFound,
    PlanLine,
    RungJudged,
    StageBegun,
)
from headstart.runs.log import RunLog
from headstart.runs.status import LiveStatus, run_lock
from headstart.serve.middleware import ServerState
from headstart.serve.watch import process as viewer
from headstart.serve.watch.process import view_app, watched_beside
from headstart.serve.watch.run_reader import RunReader

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

RUNG = {"boundary": "head", "correct": 18, "count": 20, "low": 0.7, "high": 0.97, "log_loss": 0.31, "seconds": 1.5}
FOUND = [{"kind": "blank", "severity": "warning", "message": "2 image(s) of one colour", "cases": 2}]


@contextmanager
def watching(folder: Path) -> Iterator[str]:
    """The URL of a view in a separate process; it ends with the block, as with a training."""
    with watched_beside(folder) as address:
        yield address().removesuffix("/watch")


@contextmanager
def shown(folder: Path) -> Iterator[str]:
    """The address of the same in this process."""
    state = ServerState()
    with serving(view_app(RunReader(folder), state), state) as site:
        yield site
        state.draining = True


def events(site: str, *, after: str = "", least: int = 1) -> list[tuple[str, str, dict[str, object]]]:
    """(kind, id, data) of the first events, as many as are asked for, or all up to the end."""
    found = []
    headers = {"Last-Event-ID": after} if after else {}
    with httpx.stream("GET", f"{site}/watch/events", headers=headers, timeout=20) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        kind = data = name = ""
        for line in answer.iter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                kind = value
            elif field == "data":
                data = value
            elif field == "id":
                name = value
            elif not line and kind:
                found.append((kind, name, json.loads(data)))
                kind = data = name = ""
                if len(found) >= least:
                    break
    return found


def begin(folder: Path) -> EventStream:
    folder.mkdir()
    (folder / "recipe.json").write_text("{}")
    log = EventStream([RunLog(folder)])
    log.emit(ImagesRead(str(folder), {"train": {"a": 40, "b": 40}, "val": {"a": 10, "b": 10}}, 1))
    log.emit(FindingsUpdated(FOUND))
    log.emit(PlanLine("Plan: features of 100 images and a probe, about 3 s."))
    return log


@pytest.mark.slow
def test_events_continue_at_the_last_event_id_and_end_with_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    log = begin(run)
    with shown(run) as site:
        first = events(site, least=4)
        assert [kind for kind, _, _ in first] == ["state", "log", "log", "log"]
        assert [data["event"] for _, _, data in first[1:]] == ["images", "findings", "plan"]
        log.emit(RungJudged({"name": "probe", **RUNG}))
        again = events(site, after=first[2][1], least=3)
        assert [data.get("event") for _, _, data in again] == [None, "plan", "rung"]
        (run / "run.json").write_text("{}")
        assert [kind for kind, _, _ in events(site, after=again[-1][1], least=99)] == ["state", "end"]
        assert httpx.get(f"{site}/watch/images/..%2f..%2fetc%2fpasswd").status_code == 404
        assert httpx.get(f"{site}/watch/events", headers={"Host": "evil.example"}).status_code == 403


def test_watching_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        viewer.watch(tmp_path)


@pytest.mark.exhaustive
def test_a_view_ends_with_its_training_and_does_not_share_its_port(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(tmp_path / "run")
    with watching(tmp_path / "run") as site:
        status, _, err = main("watch", tmp_path / "run", "--port", site.rpartition(":")[2], capsys=capsys)
        assert status == 1
        assert re.search(r"Error: 127.0.0.1:\d+: cannot listen there .*in use", err)
        assert httpx.get(f"{site}/watch").status_code == 200
        started = time.monotonic()
    assert time.monotonic() - started < viewer.MAX_LINGER
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{site}/watch")


# ---- In a browser --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as own:
        yield own


@pytest.mark.slow
def test_findings_open_their_images_and_the_ladder_fits_a_phone(browser: Browser, tmp_path: Path) -> None:
    run = tmp_path / "run"
    random_image(1).save(tmp_path / "odd.png")
    log = begin(run)
    images = [[str(tmp_path / "odd.png"), "odd.png: 2.1 times as far"], [str(tmp_path / "gone.png"), "gone.png: far"]]
    log.emit(FindingsUpdated([FOUND[0] | {"cases": 40, "images": images}]))
    reference = {"name": "kNN", "epochs": 0, "p": 1.0, "decision": "reference only, never kept"}
    log.emit(RungJudged(reference | RUNG | {"log_loss": 0.0}))
    log.emit(RungJudged({"name": "probe", "epochs": 0, "p": 1.0, "decision": "", **RUNG}))
    with shown(run) as site, browsing(browser, site, "/watch", width=390) as (page, wrong):
        until(page, "document.querySelectorAll('#ladder tr').length === 2")
        page.get_by_text("Show 2 images").click()
        until(page, "document.querySelector('.cases a img')?.complete")
        until(page, "document.querySelector('.cases').textContent.includes('File not found')")
        assert page.locator(".cases a").get_attribute("href").startswith("blob:")
        assert "lists all 40" in page.locator(".cases").inner_text()
        log.emit(PlanLine("Plan: more."))  # what is open stays open
        until(page, "document.querySelectorAll('#plan li').length === 2")
        assert page.locator(".cases[open] a img").is_visible()
        first = page.locator("#ladder tr").first
        assert [line for line in first.inner_text().split("\n") if line.strip() == "-"]
        ends = "[...document.querySelectorAll('#ladder td')].map((one) => one.getBoundingClientRect().right)"
        assert max(page.evaluate(ends)) <= 390
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert not [text for text in wrong if "404" not in text]  # the image that is gone


@pytest.mark.exhaustive
def test_a_run_is_shown_live_after_a_reload_and_after_a_kill(browser: Browser, tmp_path: Path) -> None:
    run = tmp_path / "run"
    random_image(1).save(tmp_path / "wrong <1>.png")
    with watching(run) as site, browsing(browser, site, "/watch") as (page, wrong):
        until(page, "document.querySelector('#state-words').textContent === 'Starting'")
        log = begin(run)
        with run_lock(run), EventStream([LiveStatus(run)]).task("Fine-tuning", 200) as advance:
            advance(50)
            items = [[str(tmp_path / "wrong <1>.png"), "a", "b"], [str(tmp_path / "gone.png"), "b", "<b>"]]
            log.emit(MistakesFound("probe", {"count": 2, "of": 18, "items": items}))
            log.emit(StageBegun("probe", 0, 0, 0, False, []))
            log.emit(RungJudged({"name": "probe", "epochs": 0, "p": 1.0, "decision": "", **RUNG}))
            for epoch in range(3):
                entry = {"epoch": epoch, "loss": 0.5, "accuracy": 0.8, "correct": 15, "log_loss": 0.4}
                emit_epoch(log, "fine-tune from blocks.6", entry, 18)
            until(page, "document.querySelector('#state-words').textContent === 'Training'")
            until(page, "document.querySelector('#now-title').textContent === 'Fine-tuning'")
            until(page, "document.querySelectorAll('#ladder tr').length === 1")
            until(page, "document.querySelectorAll('.charts svg path').length === 4")
            until(page, "document.querySelectorAll('#mistakes img').length === 1")
            until(page, "document.querySelector('#mistakes').textContent.includes('File not found')")
            assert "2 image(s) of one colour" in page.locator("#findings").inner_text()
            assert "predicted: <b>" in page.locator("#mistakes").inner_text()
            page.reload()
            until(page, "document.querySelectorAll('#ladder tr').length === 1")
            until(page, "document.querySelectorAll('#epochs tr').length === 3")
        until(page, "!document.querySelector('#stopped').hidden")
        assert page.locator("#resume-command").inner_text() == f"headstart train --resume {run} --watch"
        assert page.evaluate("document.documentElement.scrollWidth") <= 1200
        wrong[:] = [text for text in wrong if "404" not in text]  # the image that is gone
        assert not wrong


@pytest.mark.exhaustive
def test_a_training_prints_the_url_of_its_view_which_shows_the_end(
    browser: Browser, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_classes(tmp_path / "data", {"blue": 12, "red": 12})
    opened: list[str] = []
    monkeypatch.setattr("headstart.pipeline.plan.measure_engines", lambda *_args, **_options: EnginePlan())
    monkeypatch.setenv("DISPLAY", ":99")
    monkeypatch.setattr("webbrowser.open", opened.append)
    run = tmp_path / "run"
    choices = ["--image-size", "64", "--device", "cpu", "--watch"]
    status, out, err = main("train", data, "--out", run, *choices, capsys=capsys)
    assert status == 0
    assert re.search(r"Watch the run at (http://127.0.0.1:\d+/watch)\n", err)
    assert opened == re.findall(r"http://\S+", err)
    assert err.endswith(f"To open that page again: headstart watch {run}\n")
    assert "Report:" in out
    assert not {"now.json", "lock"} & {own.name for own in run.iterdir()}
    with shown(run) as site, browsing(browser, site, "/watch", width=390) as (page, wrong):
        until(page, "!document.querySelector('#result').hidden")
        assert page.locator("#state-words").inner_text() == "Finished"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        with page.context.expect_page() as report:
            page.get_by_role("link", name="Open the report").click()
        report.value.wait_for_selector("h1")
        assert not wrong


@pytest.mark.exhaustive
def test_a_killed_training_is_shown_as_stopped_and_resumes_with_a_page(browser: Browser, tmp_path: Path) -> None:
    for split, count, seed in (("train", 24, 0), ("val", 60, 500)):  # with fewer in val, folds come before any epoch
        write_classes(tmp_path / "two" / split, {"first": count, "second": count}, first_seed=seed)
    mislabel(tmp_path / "two" / "train", "first", "second", 24)
    run = tmp_path / "run"
    command = [sys.executable, "-m", "headstart", "train"]
    choices = ["--image-size", "64", "--device", "cpu", "--effort", "quick", "--unfreeze", "blocks.6"]
    choices += ["--epochs", "400", "--views", "1", "--watch"]
    begun = [*command, str(tmp_path / "two"), "--out", str(run), *choices]
    with (
        subprocess.Popen(begun, stderr=subprocess.PIPE, text=True) as process,
        page_of(browser, process) as (page, wrong),
    ):
        until(page, "document.querySelectorAll('#epochs tr').length > 2", seconds=90)
        process.kill()
        until(page, "!document.querySelector('#stopped').hidden")
        assert page.locator("#resume-command").inner_text() == f"headstart train --resume {run} --watch"
        until(page, "document.querySelector('#notice').textContent.includes('headstart watch')")
        assert not [text for text in wrong if "ERR_" not in text]  # the server is gone
    with (
        subprocess.Popen([*command, "--resume", str(run), "--watch"], stderr=subprocess.PIPE, text=True) as process,
        page_of(browser, process) as (page, wrong),
    ):
        until(page, "document.querySelector('#state-words').textContent === 'Training'", seconds=60)
        until(page, "document.querySelectorAll('#epochs tr').length > 2", seconds=60)
        process.send_signal(signal.SIGINT)
        until(page, "!document.querySelector('#stopped').hidden")
        assert process.wait(30) == 130


@contextmanager
def page_of(browser: Browser, process: subprocess.Popen[str]) -> Iterator[tuple[Page, list[str]]]:
    """The page that a training has said to be at; what it says beside that is read and dropped."""
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.match(r"Watch the run at (http://\S+)/watch", line):
            break
    else:
        raise AssertionError("no address")
    threading.Thread(target=process.stderr.read, daemon=True).start()
    try:
        with browsing(browser, found[1], "/watch") as both:
            yield both
    finally:
        process.kill()
