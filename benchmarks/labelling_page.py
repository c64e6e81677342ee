"""The labelling page in Chromium: first image, frames while scrolling, and the longest task after a batch.

    python benchmarks/labelling_page.py [--images 50000] [--rounds 3] [--folder FOLDER] [--part scroll]

Part "scroll" opens the page on generated images while they are being read, as a user does, and measures the seconds
until the first image is on the screen and the frames per second of scrolling from the first to the last. Part
"batch" labels 2,000 of 10,000 images as 20 classes through the API, then labels further batches on the page and
measures the longest task of the main thread. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from playwright.sync_api import Page

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from browser import chromium

CLASSES = 20
LABELLED = 2_000
BATCHES = 6

OBSERVE = """() => {
  window.longTasks = [];
  new PerformanceObserver((list) => { for (const one of list.getEntries()) longTasks.push(one.duration); })
    .observe({ type: "longtask", buffered: true });
}"""

FIRST_IMAGE = """() => new Promise((resolve) => {
  const look = () => document.querySelector("#grid img.ready")
    ? requestAnimationFrame(() => resolve(performance.now() / 1000)) : setTimeout(look, 10);
  look();
})"""

SCROLL = """(seconds) => new Promise((resolve) => {
  const grid = document.getElementById("grid"), end = grid.scrollHeight - grid.clientHeight, frames = [];
  const started = performance.now();
  const step = (now) => {
    frames.push(now);
    const share = (now - started) / (1000 * seconds);
    if (share >= 1) { resolve({ frames, tiles: document.querySelectorAll("#grid .tile").length }); return; }
    grid.scrollTop = end * Math.min(1, Math.max(0, share));
    requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
})"""


def write_images(folder: Path, count: int, side: int = 64) -> None:
    """Random images of CLASSES colours; no two are near-duplicates."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    colours = rng.integers(60, 200, (CLASSES, 3))
    for number in range(len(list(folder.iterdir())), count):
        patches = np.random.default_rng(number).integers(-60, 60, (6, 6, 3)) + colours[number % CLASSES]
        image = Image.fromarray(patches.clip(0, 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        image.save(folder / f"{number:06d}-{number % CLASSES:02d}.jpg", quality=85)


@contextmanager
def labelling(folder: Path, work: Path) -> Iterator[str]:
    """``headstart label`` in a process with an empty cache; yields the address."""
    command = [sys.executable, "-m", "headstart", "label", str(folder), "--no-open", "--labels", str(work / "l.csv")]
    environment = os.environ | {"HEADSTART_CACHE": str(work / "cache")}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "http://" in line:
                yield line.split("http://")[1].split(". ")[0].join(["http://", ""])
                break
    finally:
        process.terminate()
        process.wait()


def frames_per_second(frames: list[float]) -> dict[str, float]:
    """Mean rate, and the rate of the slowest 5 % of the frames."""
    gaps = np.diff(frames)
    return {
        "mean": round(1000 / float(np.mean(gaps)), 1),
        "slowest 5 %": round(1000 / float(np.quantile(gaps, 0.95)), 1),
    }


def scroll(folder: Path, rounds: int) -> dict[str, Any]:
    """First image and scrolling, on a new server each round."""
    first, rates, slow, longest, tiles = [], [], [], [], 0
    with chromium() as browser:
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as work, labelling(folder, Path(work)) as address:
                page = browser.new_page(viewport={"width": 1400, "height": 900})
                page.add_init_script(f"({OBSERVE})()")
                page.goto(address, wait_until="commit")
                first.append(round(page.evaluate(FIRST_IMAGE), 2))
                until(page, lambda page=page: total_of(page) >= 1000 and listed(address))
                found = page.evaluate(SCROLL, 10)
                rate = frames_per_second(found["frames"])
                rates.append(rate["mean"])
                slow.append(rate["slowest 5 %"])
                tiles = max(tiles, found["tiles"])
                longest.append(round(max(page.evaluate("longTasks"), default=0)))
                page.close()
    return {
        "seconds to the first image": first,
        "frames per second": rates,
        "frames per second, slowest 5 %": slow,
        "longest task, ms": longest,
        "most tiles in the document": tiles,
    }


def total_of(page: Page) -> int:
    """Number of images in the view."""
    return int(page.evaluate("Number(document.querySelector('#grid .tile')?.getAttribute('aria-setsize') ?? 0)"))


def listed(address: str) -> bool:
    """Whether all images are listed."""
    return httpx.get(f"{address}/v1/label/state").json()["work"]["stage"] != "listing"


def until(page: Page, true: Any, seconds: float = 1800) -> None:
    """Waits for a condition."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError("the condition did not become true")
        page.wait_for_timeout(100)


def batch(folder: Path) -> dict[str, Any]:
    """Longest tasks while batches are labelled on the page, with 20 classes and 2,000 labels."""
    with tempfile.TemporaryDirectory() as work, labelling(folder, Path(work)) as address, chromium() as browser:
        client = httpx.Client(base_url=address, timeout=120)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.add_init_script(f"({OBSERVE})()")
        page.goto(address)
        state = lambda: client.get("/v1/label/state").json()  # noqa: E731
        until(page, lambda: state()["work"]["stage"] in ("ready", "failed"))
        shown = client.get("/v1/label/images", params={"view": "all", "count": 1000, "start": 0}).json()["items"]
        shown += client.get("/v1/label/images", params={"view": "all", "count": 1000, "start": 1000}).json()["items"]
        for number in range(CLASSES):
            ids = [item["id"] for item in shown[:LABELLED] if item["name"].endswith(f"-{number:02d}.jpg")]
            action = {"do": "label", "images": ids, "label": f"class {number:02d}", "source": "grid"}
            client.post("/v1/label/actions", json={"session": state()["session"], "action": action}).raise_for_status()
        until(page, lambda: state()["learner"]["state"] == "ready")
        page.select_option("#view", "unlabelled")
        page.wait_for_timeout(2000)
        page.evaluate("longTasks.length = 0")
        refits, longest = [], []
        for number in range(BATCHES):
            labels, revision = state()["learner"]["labels"], state()["revision"]
            page.focus("#grid")
            page.keyboard.press("Home")
            for _ in range(24):
                page.keyboard.press("Shift+ArrowRight")
            page.keyboard.press(str(number % 9 + 1))
            started = time.perf_counter()
            until(
                page,
                lambda r=revision, n=labels: (
                    state()["revision"] > r
                    and state()["learner"]["labels"] != n
                    and state()["learner"]["state"] == "ready"
                ),
            )
            refits.append(round(time.perf_counter() - started, 2))
            page.wait_for_timeout(1200)
            longest.append(round(max(page.evaluate("longTasks.splice(0)"), default=0)))
        return {"longest task after a batch, ms": longest, "seconds until refitted suggestions": refits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keeps the generated images there")
    parser.add_argument("--part", choices=["scroll", "batch"], nargs="*", default=["scroll", "batch"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as own:
        folder = given.folder or Path(own)
        found: dict[str, Any] = {"images": given.images, "cores": os.cpu_count()}
        if "scroll" in given.part:
            write_images(folder / "all", given.images)
            found["scroll"] = scroll(folder / "all", given.rounds)
            found["scroll"]["median frames per second"] = statistics.median(found["scroll"]["frames per second"])
        if "batch" in given.part:
            write_images(folder / "batch", min(10_000, given.images))
            found["batch"] = batch(folder / "batch")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
