"""Headless Chromium, if it is installed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
ARGUMENTS += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@contextmanager
def chromium(arguments: Sequence[str] = ()) -> Iterator[Browser]:
    """A browser for several pages, with more arguments; skips the test if none is installed."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*ARGUMENTS, *arguments])
        yield browser
        browser.close()


@contextmanager
def opened(file: Path, *, width: int = 1200, dark: bool = False) -> Iterator[tuple[Page, list[str]]]:
    """Opens a file; yields the page and a list of console errors, exceptions and requests to other addresses."""
    with chromium() as browser, _page(browser, file.as_uri(), ("data:", "file:"), width, dark) as both:
        yield both


@contextmanager
def browsing(browser: Browser, site: str, path: str = "/", *, width: int = 1200) -> Iterator[tuple[Page, list[str]]]:
    """``opened`` for a page of a server; requests to other hosts are errors."""
    with _page(browser, site + path, ("data:", "blob:", site + "/"), width) as both:
        yield both


@contextmanager
def _page(
    browser: Browser, address: str, own: tuple[str, ...], width: int, dark: bool = False
) -> Iterator[tuple[Page, list[str]]]:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, reduced_motion="reduce", color_scheme="dark" if dark else "light"
    )
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith(own) else wrong.append(asked.url))
    page.goto(address)
    yield page, wrong
    context.close()


def until(page: Page, script: str, *, seconds: float = 30) -> None:
    """Polls an expression until it is true; a content security policy forbids Playwright's wait_for_function.

    The page may load itself again meanwhile.
    """

    from playwright.sync_api import Error

    def is_true() -> bool:
        try:
            return bool(page.evaluate(script))
        except Error as error:
            if "context was destroyed" not in error.message:
                raise
            return False

    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, f"never: {script}"
        time.sleep(0.03)
