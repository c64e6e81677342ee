"""Takes the screenshots of docs/labelling.md: a session on 900 digits, labelled truly, in headless Chromium.

python scripts/labelling_screenshots.py [docs/images/labelling]
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from headstart.demo import write_digits

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COUNT, ASKED = 900, 90
READY = "document.querySelectorAll('.panel-body:not([hidden]) img.ready').length >= {}"


def write_images(folder: Path) -> dict[str, str]:
    """Digits without class folders, in the order of scikit-learn; file name -> class."""
    digits = folder.parent / "by-class"
    write_digits(digits)
    folder.mkdir()
    truth = {}
    for file in sorted(digits.glob("*/*.png"), key=lambda one: one.name)[:COUNT]:
        shutil.copy(file, folder / file.name)
        truth[file.name] = NAMES[int(file.parent.name)]
    return truth


@contextmanager
def labelling(folder: Path) -> Iterator[str]:
    """``headstart label`` with an empty cache; yields the address."""
    command = [sys.executable, "-m", "headstart", "label", str(folder), "--no-open", "--minutes", "0.5"]
    environment = os.environ | {"HEADSTART_CACHE": str(folder.parent / "cache")}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if "http://" in line)
        yield "http://" + line.split("http://")[1].split(". ")[0]
    finally:
        process.terminate()
        process.wait()


class Session:
    """Labels truly through the API, and takes screenshots of the page."""

    def __init__(self, site: str, truth: dict[str, str], browser: Browser, out: Path) -> None:
        self.client, self.truth, self.browser, self.out = httpx.Client(base_url=site, timeout=300), truth, browser, out
        self.site = site

    def get(self, path: str, **params: Any) -> Any:
        """JSON of a request."""
        return self.client.get(f"/v1/label/{path}", params=params).json()

    def until(self, true: Callable[[], object]) -> None:
        """Waits for a condition."""
        end = time.monotonic() + 1800
        while not true():
            if time.monotonic() > end:
                raise TimeoutError("the condition did not become true")
            time.sleep(0.1)

    def label(self, items: list[dict[str, Any]], source: str) -> None:
        """Gives images their true classes, and waits for the classifier."""
        items = sorted(items, key=lambda item: self.truth[item["name"]])
        for name, part in itertools.groupby(items, key=lambda item: self.truth[item["name"]]):
            action = {"do": "label", "images": [item["id"] for item in part], "label": name, "source": source}
            body = {"session": self.get("state")["session"], "action": action}
            self.client.post("/v1/label/actions", json=body).raise_for_status()
        self.until(lambda: self.get("state")["learner"]["state"] != "fitting")

    def page(self, panel: str, *, phone: bool = False, dark: bool = False) -> Page:
        """The page at a step."""
        size = {"width": 390, "height": 800} if phone else {"width": 1400, "height": 900}
        context = self.browser.new_context(
            viewport=size, has_touch=phone, is_mobile=phone, color_scheme="dark" if dark else "light"
        )
        page = context.new_page()
        page.goto(f"{self.site}/#{panel}")
        self.until(lambda: page.evaluate("Boolean(document.querySelector('#tab-images .badge').textContent)"))
        return page

    def screenshot(self, page: Page, name: str, ready: str = "true") -> None:
        """Takes a screenshot when an expression is true, with a palette of 256 colours."""
        self.until(lambda: page.evaluate(ready))
        page.wait_for_timeout(500)
        file = self.out / f"{name}.png"
        page.screenshot(path=str(file))
        Image.open(file).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
        print(file, flush=True)

    def items(self) -> dict[int, dict[str, Any]]:
        """Number -> item of each image."""
        return {item["id"]: item for item in self.get("images", view="all", count=1000)["items"]}


def take(session: Session) -> None:
    """All screenshots, in the order of the steps."""
    page = session.page("images")
    session.until(lambda: session.get("state")["work"]["done"] > COUNT // 4)
    session.screenshot(page, "see", READY.format(30))
    session.until(lambda: session.get("state")["work"]["stage"] == "ready")
    items = session.items()
    for group in session.get("clusters")["clusters"][:6]:
        shown = [items[image] for image in group["examples"][:9]]
        classes = [session.truth[item["name"]] for item in shown]
        most = max(classes, key=classes.count)
        session.label([item for item, name in zip(shown, classes, strict=True) if name == most], "cluster")
    session.screenshot(session.page("groups"), "groups", READY.format(60))
    session.label(session.get("queue/blind", count=1000)["items"], "blind")
    for _ in range(ASKED // 5):
        session.label(session.get("queue/ask", count=5)["items"], "ask")
    session.screenshot(session.page("confirm"), "confirm", READY.format(40))
    shown = "document.querySelector('#ask-image img').complete"
    session.screenshot(
        session.page("ask"), "ask", f"{shown} && document.querySelectorAll('.panel-ask .choices button').length"
    )
    session.screenshot(session.page("confirm", phone=True), "phone", READY.format(1))
    curve = "Boolean(document.querySelector('.know .curve'))"
    session.screenshot(session.page("know"), "accuracy", curve)
    session.screenshot(session.page("know", dark=True), "dark", curve)
    page = session.page("train")
    page.click("#train")
    session.until(lambda: session.get("state")["training"]["state"] not in ("none", "running"))
    session.until(lambda: page.evaluate("document.querySelectorAll('#trained code').length"))
    page.evaluate("document.querySelector('#trained code').textContent = 'headstart serve digits-run'")
    session.screenshot(page, "train")


def main() -> None:
    """Writes the images, starts the session and the browser."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images/labelling")
    with tempfile.TemporaryDirectory() as work, sync_playwright() as playwright:
        folder = Path(work) / "digits"
        truth = write_images(folder)
        path = next(found for name in ("chromium", "google-chrome") if (found := shutil.which(name)))
        browser = playwright.chromium.launch(executable_path=path, args=["--headless", "--no-sandbox", "--disable-gpu"])
        with labelling(folder) as site:
            take(Session(site, truth, browser, out))
        browser.close()


if __name__ == "__main__":
    main()
