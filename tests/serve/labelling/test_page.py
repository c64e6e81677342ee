"""The labelling page in a browser: keyboard, mouse, phone, two tabs, a killed server and a trained model."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from browser import browsing, chromium, until
from commands import child_of
from documents import free_port
from labelling import colour_of, labelling_site, opened_session, wait_for, write_unlabelled
from random_images import COLOURS
from small_architectures import small_architectures  # noqa: F401  # used by the processes that the tests start

import headstart as hs
from headstart.serve.labelling import training_process

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

pytestmark = [pytest.mark.usefixtures("small_networks"), pytest.mark.slow]

SERVE = """
from headstart.serve.labelling.process import label
with small_architectures():
    label(sys.argv[1], port=int(sys.argv[2]), device="cpu", open_browser=False)
"""

TRAIN = """
sys.argv[1:] = ["train", *sys.argv[1:]]
from headstart.cli.main import main
with small_architectures():
    main()
"""

PROBE = ("--effort", "probe", "--image-size", "64", "--device", "cpu")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as own:
        yield own


@contextmanager
def page_of(
    browser: Browser, folder: Path, *, width: int = 1200, refused: str = "409", **options: Any
) -> Iterator[tuple[Page, str]]:
    """The page of a session on a folder, when its features are computed; nothing may be logged in the console."""
    with opened_session(folder, **options) as backend, labelling_site(backend) as site:
        wait_for(lambda: state(site)["work"]["stage"] == "ready")
        with browsing(browser, site, width=width) as (page, wrong):
            until(page, "document.querySelectorAll('#grid img.ready').length > 3")
            yield page, site
            assert [text for text in wrong if refused not in text] == []


def state(site: str) -> dict[str, Any]:
    return dict(httpx.get(f"{site}/v1/label/state", timeout=60).json())


def items(site: str, view: str = "all") -> list[dict[str, Any]]:
    return list(httpx.get(f"{site}/v1/label/images", params={"view": view, "count": 1000}).json()["items"])


def settled(page: Page) -> None:
    """Waits until every action of the page is acknowledged."""
    until(page, "Number(document.body.dataset.waiting ?? 0) === 0")


def text_of(page: Page, script: str) -> str:
    return str(page.evaluate(f"{script} ?? ''"))


def active_name(page: Page) -> str:
    """Class that the name of the active image of a list says."""
    label = text_of(
        page, "document.querySelector('.panel-body:not([hidden]) .tile.active')?.getAttribute('aria-label')"
    )
    return label.partition("-")[2].partition(".png")[0]


def label_some(page: Page, site: str, count: int) -> None:
    """Labels the first images of the grid by the keyboard: a name first, then its key."""
    page.focus("#grid")
    page.keyboard.press("Home")
    for number in range(count):
        tile = f"document.querySelector('#grid #tile-{number}.active')"  # drawn in the next frame
        until(page, f"Boolean({tile}?.getAttribute('aria-label').includes('.png'))")
        name = active_name(page)
        keys = {one["name"]: one["key"] for one in state(site)["classes"]}
        if name in keys:
            page.keyboard.press(keys[name])
        else:
            page.keyboard.press("/")
            page.keyboard.type(name)
            page.keyboard.press("Enter")
        settled(page)
        page.keyboard.press("ArrowRight")


def go_to(page: Page, panel: str) -> None:
    """Opens a step with the keys [ and ]."""
    for _ in range(10):
        if page.evaluate("document.body.dataset.panel") == panel:
            return
        page.keyboard.press("]")
    raise AssertionError(f"{panel} is not a step")


def confirm_all(page: Page, site: str) -> None:
    """Confirms every suggestion by the keyboard, and unticks the wrong ones."""
    go_to(page, "confirm")
    for _ in range(40):
        wait_for(lambda: state(site)["learner"]["state"] != "fitting")
        with_tiles = "document.querySelectorAll('#confirm:not([hidden]) .tile').length"
        page.wait_for_timeout(150)
        until(page, "!document.querySelector('#confirm.sent')")
        count = page.evaluate(with_tiles)
        if not count:
            return
        page.focus("#confirm")
        page.keyboard.press("Home")
        offered = text_of(page, "document.querySelector('#confirm .tile').getAttribute('aria-label')")
        wanted = offered.partition("suggested ")[2].partition(":")[0]
        for place in range(count):
            until(page, f"document.querySelectorAll('#confirm .tile')[{place}]?.classList.contains('active')")
            if active_name(page) != wanted:
                page.keyboard.press("Space")
            page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        settled(page)


def test_a_keyboard_alone_leads_from_unlabelled_images_to_a_trained_model(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_process, "COMMAND", tuple(child_of(__file__, TRAIN)))
    folder = write_unlabelled(tmp_path / "images", 90)
    with page_of(browser, folder, train_options=PROBE) as (page, site):
        label_some(page, site, 9)
        assert {one["name"] for one in state(site)["classes"]} == set(COLOURS)
        confirm_all(page, site)
        go_to(page, "blind")
        while state(site)["blind"]["labelled"] < state(site)["blind"]["wanted"]:
            until(page, "Boolean(document.querySelector('#blind-image figcaption').textContent)")
            shown = text_of(page, "document.querySelector('#blind-image figcaption').textContent")
            assert not page.evaluate("document.querySelectorAll('.panel-blind .choices button').length")
            keys = {one["name"]: one["key"] for one in state(site)["classes"]}
            page.keyboard.press(keys[shown.partition("-")[2].partition(".png")[0]])
            settled(page)
        go_to(page, "know")
        until(page, "document.querySelector('.know').textContent.includes('%')")
        go_to(page, "train")
        page.focus("#train")
        page.keyboard.press("Enter")
        wait_for(lambda: state(site)["training"]["state"] not in ("none", "running"), 240)
        assert state(site)["training"]["state"] == "finished", state(site)["training"]["message"]
        until(page, "document.activeElement?.id === 'report'")
        report = httpx.get(f"{site}/watch/report")
        assert report.status_code == 200
        assert "sandbox" in report.headers["content-security-policy"]
        page.set_input_files("#try-files", str(next(folder.glob("*-red.png"))))
        until(page, "document.querySelector('#tried strong')?.textContent.length > 0", seconds=60)
        assert all(colour_of(item) in item["label"] for item in items(site, "labelled"))


def test_only_visible_rows_are_in_the_document_and_every_image_can_be_reached(browser: Browser, tmp_path: Path) -> None:
    with page_of(browser, write_unlabelled(tmp_path / "images", 400)) as (page, _):
        assert page.evaluate("document.querySelectorAll('#grid .tile').length") < 120
        page.focus("#grid")
        page.keyboard.press("End")
        until(page, "document.querySelector('#grid .tile.active')?.getAttribute('aria-label').startsWith('0399-')")
        assert page.evaluate("document.querySelectorAll('#grid .tile').length") < 120
        until(
            page,
            "[...document.querySelectorAll('#grid .tile.active img')].every((image) => image.className === 'ready')",
        )


def test_the_mouse_selects_by_click_shift_control_and_rectangle(browser: Browser, tmp_path: Path) -> None:
    with page_of(browser, write_unlabelled(tmp_path / "images", 60)) as (page, site):
        chosen = "document.querySelectorAll('#grid .tile[aria-selected=true]').length"
        tile = lambda number: page.locator(f"#tile-{number}")  # noqa: E731
        tile(1).click()
        until(page, f"{chosen} === 1")
        tile(4).click(modifiers=["Shift"])
        until(page, f"{chosen} === 4")
        tile(2).click(modifiers=["Control"])
        until(page, f"{chosen} === 3")
        first, last = tile(0).bounding_box(), tile(3).bounding_box()
        assert first is not None
        assert last is not None
        page.mouse.move(first["x"] + 8, first["y"] + 8)
        page.mouse.down()
        page.mouse.move(last["x"] + 20, last["y"] + 20, steps=4)
        page.mouse.up()
        until(page, f"{chosen} === 4")
        page.keyboard.press("/")
        page.keyboard.type("some")
        page.keyboard.press("Enter")
        settled(page)
        assert [item["label"] for item in items(site)[:5]] == [["some"]] * 4 + [None]
        page.keyboard.press("Control+a")
        page.keyboard.press("u")
        settled(page)
        wait_for(lambda: state(site)["answers"]["unsure"] == state(site)["images"])
        page.keyboard.press("Control+z")
        settled(page)
        assert items(site)[0]["label"] == ["some"]
        page.keyboard.press("Control+Shift+z")
        wait_for(lambda: items(site)[0]["label"] == "unsure")


def test_buttons_of_a_phone_are_large_enough_and_missing_images_and_classes_are_named(
    browser: Browser, tmp_path: Path
) -> None:
    folder = write_unlabelled(tmp_path / "images", 12)
    (tmp_path / "images-labels.csv").write_text("path,label\nimages/gone.png,red\n")
    with page_of(browser, folder, width=390) as (page, _):
        until(page, "document.querySelector('#notice').textContent.includes('images/gone.png')")
        for panel in ("images", "train", "keep"):
            go_to(page, panel)
            until(page, f"!document.querySelector('.panel-{panel}').hidden")
            small = """[...document.querySelectorAll('button, select, a.button, input[type=text]')]
                .filter((one) => one.checkVisibility() && one.getBoundingClientRect().height < 43.9)
                .map((one) => one.id || one.textContent)"""
            assert page.evaluate(small) == []
        assert "two classes" in text_of(page, "document.querySelector('.panel-train').textContent")


def test_a_long_class_name_keeps_every_control_in_reach_and_a_longer_one_is_refused_whole(
    browser: Browser, tmp_path: Path
) -> None:
    with page_of(browser, write_unlabelled(tmp_path / "images", 12), refused="422") as (page, site):
        for name in ("W" * 190, "red", "x" * 201):
            page.keyboard.press("/")
            page.keyboard.type(name)
            page.keyboard.press("Enter")
            settled(page)
            if name == "x" * 201:
                until(page, "document.querySelector('#notice').textContent.includes('too long')")
        assert [one["name"] for one in state(site)["classes"]] == ["W" * 190, "red"]
        assert page.evaluate("document.querySelector('#view').getBoundingClientRect().width") < 300
        page.click("[aria-label='Edit class red']")
        inside = """[...document.querySelectorAll('#class-dialog button')].filter((one) => one.checkVisibility()).every(
            (one) => one.getBoundingClientRect().right < one.closest('dialog').getBoundingClientRect().right)"""
        assert page.evaluate(inside)


def test_images_left_out_of_a_group_come_last_and_are_not_marked_any_more(browser: Browser, tmp_path: Path) -> None:
    with page_of(browser, write_unlabelled(tmp_path / "images", 90)) as (page, site):
        page.evaluate("location.hash = 'groups'")
        until(page, "document.querySelectorAll('#groups .open-group').length > 1")
        tiles = "#groups > li:first-child .tile"
        until(page, f"document.querySelectorAll('{tiles} img.ready').length === 9")
        before = page.evaluate(f"[...document.querySelectorAll('{tiles} img')].map((image) => image.src)")
        page.locator(tiles).first.click()
        assert page.locator(f"{tiles}.out").count() == 1
        page.keyboard.press("/")
        page.keyboard.type("some")
        page.keyboard.press("Enter")
        settled(page)
        assert state(site)["labelled"] == 8
        until(page, f"document.querySelector('{tiles} img')?.src !== '{before[0]}'")
        assert page.locator("#groups .tile.out").count() == 0
        page.keyboard.press("Control+z")
        settled(page)
        until(page, f"document.querySelector('{tiles} img')?.src === '{before[0]}'")


def test_classes_are_renamed_merged_and_deleted_and_each_is_undone(browser: Browser, tmp_path: Path) -> None:
    with page_of(browser, write_unlabelled(tmp_path / "images", 30)) as (page, site):
        label_some(page, site, 6)
        page.click("[aria-label='Edit class blue']")
        page.fill("#rename-name", "azure")
        page.keyboard.press("Enter")
        settled(page)
        assert "azure" in [one["name"] for one in state(site)["classes"]]
        page.click("[aria-label='Edit class azure']")
        page.select_option("#merge-into", "red")
        page.click("#merge-form button")
        settled(page)
        assert {one["name"]: one["labelled"] for one in state(site)["classes"]} == {"green": 2, "red": 4}
        page.click("[aria-label='Edit class red']")
        page.click("#delete-class")
        settled(page)
        assert state(site)["labelled"] == 2
        for _ in range(3):
            page.click("#undo")
            settled(page)
        assert {one["name"] for one in state(site)["classes"]} == set(COLOURS)
        assert state(site)["labelled"] == 6


def test_two_tabs_follow_each_other_and_overwrite_nothing(browser: Browser, tmp_path: Path) -> None:
    folder = write_unlabelled(tmp_path / "images", 40)
    with page_of(browser, folder) as (one, site), browsing(browser, site) as (two, wrong):
        label_some(one, site, 3)
        until(two, "document.querySelectorAll('#class-list .assign').length === 3")
        two.focus("#grid")
        two.keyboard.press("End")
        until(two, "document.querySelector('#grid .tile.active')?.getAttribute('aria-label').includes('.png')")
        two.keyboard.press("1")
        settled(two)
        one.focus("#grid")
        one.keyboard.press("2")
        settled(one)
        labelled = items(site, "labelled")
        assert len(labelled) == 5
        until(one, "document.getElementById('tab-images').textContent.includes('5/')")
        one.evaluate("document.querySelector('[aria-label=\"Edit class blue\"]').click()")
        two.click("[aria-label='Edit class blue']")
        two.fill("#rename-name", "azure")
        two.keyboard.press("Enter")
        settled(two)
        one.fill("#rename-name", "navy")  # the class has another name by now
        one.keyboard.press("Enter")
        until(one, "!document.getElementById('notice').hidden")
        assert {entry["name"] for entry in state(site)["classes"]} == {"azure", "green", "red"}
        assert wrong == []


def test_images_get_several_labels_by_the_keyboard_in_the_grid_and_in_a_question(
    browser: Browser, tmp_path: Path
) -> None:
    folder = write_unlabelled(tmp_path / "images", 60)
    with page_of(browser, folder, multi_label=True) as (page, site):
        label_some(page, site, 6)
        page.keyboard.press("Home")
        until(page, "Boolean(document.querySelector('#grid #tile-0.active'))")
        for word in ("/dark", "/small"):
            page.keyboard.press("/")
            page.keyboard.type(word.removeprefix("/"))
            page.keyboard.press("Enter")
            settled(page)
        until(page, "document.querySelector('#grid #tile-0 .tag').textContent === 'blue, dark, small'")
        assert items(site)[0]["label"] == ["blue", "dark", "small"]
        keys = {one["name"]: one["key"] for one in state(site)["classes"]}
        page.keyboard.press(keys["small"])  # the same key removes it
        settled(page)
        wait_for(lambda: items(site)[0]["label"] == ["blue", "dark"])
        page.keyboard.press("Control+z")
        settled(page)
        wait_for(lambda: items(site)[0]["label"] == ["blue", "dark", "small"])
        wait_for(lambda: state(site)["learner"]["state"] == "ready")
        go_to(page, "ask")
        until(page, "Boolean(document.querySelector('#ask-image figcaption').textContent)")
        name = text_of(page, "document.querySelector('#ask-image figcaption').textContent").partition(" (")[0]
        assert [item["label"] for item in items(site) if item["name"] == name] == [None]
        pressed = "document.querySelectorAll('.panel-ask .choices [aria-pressed=true]').length"
        assert page.evaluate(pressed) == 0
        page.keyboard.press(keys["red"])
        page.keyboard.press(keys["dark"])
        until(page, f"{pressed} === 2")
        page.keyboard.press("Enter")
        settled(page)
        wait_for(lambda: [i["label"] for i in items(site) if i["name"] == name] == [["red", "dark"]])
        table = (tmp_path / "images-labels.csv").read_text()
        assert table.startswith("path,labels,split,source,time\n")
        dataset = hs.open_data(tmp_path / "images-labels.csv", min_classes=1)
        assert dataset.multi_label
        assert dataset.labels.sum(axis=1).max() == 3


def start_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(child_of(__file__, SERVE, folder, port), stderr=subprocess.PIPE)
    wait_for(lambda: answers(port) or process.poll() is not None, 240)
    assert process.poll() is None, process.stderr and process.stderr.read()
    return process


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v1/label/state", timeout=5).json()["work"]["stage"] == "ready"
    except httpx.TransportError:
        return False


def test_a_killed_server_loses_no_label_and_the_page_continues(browser: Browser, tmp_path: Path) -> None:
    folder, port = write_unlabelled(tmp_path / "images", 40), free_port()
    site = f"http://127.0.0.1:{port}"
    process = start_server(folder, port)
    try:
        context = browser.new_context()
        page = context.new_page()
        page.goto(site)
        until(page, "document.querySelectorAll('#grid img.ready').length > 3")
        label_some(page, site, 8)
        before = {item["name"]: item["label"] for item in items(site, "labelled")}
        assert len(before) == 8
        process.send_signal(signal.SIGKILL)
        process.wait()
        until(page, "document.body.classList.contains('away')")
        assert "what you label now is not saved" in text_of(page, "document.getElementById('notice').textContent")
        process = start_server(folder, port)
        until(
            page,
            "!document.body.classList.contains('away') && document.querySelectorAll('#grid .tag.given').length >= 8",
        )
        assert {item["name"]: item["label"] for item in items(site, "labelled")} == before
        page.keyboard.press("Control+z")
        settled(page)
        wait_for(lambda: state(site)["labelled"] == 7)
        context.close()
    finally:
        process.terminate()
        process.wait(120)


def test_a_second_server_of_the_same_images_names_the_first(tmp_path: Path) -> None:
    folder, port = write_unlabelled(tmp_path / "images", 12), free_port()
    process = start_server(folder, port)
    try:
        second = subprocess.run(
            [sys.executable, "-m", "headstart", "label", str(folder), "--no-open"],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert second.returncode == 1
        assert f"http://127.0.0.1:{port}" in second.stderr
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
    finally:
        process.kill()


def test_on_a_phone_suggestions_are_answered_by_swipes(browser: Browser, tmp_path: Path) -> None:
    with page_of(browser, write_unlabelled(tmp_path / "images", 60), width=390) as (page, site):
        label_some(page, site, 6)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        wait_for(lambda: state(site)["learner"]["state"] == "ready")
        page.evaluate("location.hash = 'confirm'")
        until(page, "document.querySelector('#confirm.single img.ready') !== null")
        before = state(site)["labelled"]
        for way in (1, -1):
            name = text_of(page, "document.querySelector('#confirm .tile').getAttribute('aria-label')")
            swipe(page, way)
            settled(page)
            until(page, f"document.querySelector('#confirm .tile').getAttribute('aria-label') !== {name!r}")
        assert state(site)["labelled"] == before + 1
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


SWIPE = """(way) => {
  const card = document.querySelector("#confirm .tile"), box = card.getBoundingClientRect();
  const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
  const touch = { clientY: y, pointerType: "touch", button: 0, bubbles: true };
  for (const [kind, at, target] of [["down", 0, card], ["move", 120, window], ["up", 120, window]])
    target.dispatchEvent(new PointerEvent(`pointer${kind}`, { ...touch, clientX: x + at * way }));
}"""

NAMES = """[...document.querySelectorAll("button, input, select")].map((element) =>
  element.textContent.trim() || element.getAttribute("aria-label") || element.labels?.length)"""


def swipe(page: Page, way: int) -> None:
    """A finger moves over the image, to the right (1) or left (-1)."""
    page.evaluate(SWIPE, way)


def test_the_help_lists_the_keys_and_escape_closes_it(browser: Browser, tmp_path: Path) -> None:
    with page_of(browser, write_unlabelled(tmp_path / "images", 12)) as (page, _):
        page.keyboard.press("?")
        assert page.evaluate("document.getElementById('help').open")
        words = text_of(page, "document.getElementById('help').textContent")
        assert all(key in words for key in ("Ctrl", "Space", "undo", "Enter"))
        page.keyboard.press("Escape")
        assert not page.evaluate("document.getElementById('help').open")
        names = page.evaluate(NAMES)
        assert all(names)


def test_scripts_of_the_page_have_no_unused_import() -> None:
    from headstart.serve.static_files import _files

    for name, data in _files().items():
        if name.endswith(".js"):
            text = data.decode()
            for found in re.findall(r"import \{ ([^}]+) \}", text):
                for word in found.split(", "):
                    assert len(re.findall(rf"\b{word}\b", text)) > 1, (name, word)


def test_tiles_of_this_page_and_of_the_page_of_corrections_are_one_module() -> None:
    from headstart.serve.static_files import _files

    scripts = {name: data.decode() for name, data in _files().items() if name.endswith(".js")}
    assert [name for name, text in scripts.items() if 'class: "tile"' in text] == ["tiles.js"]
    using = {
        name for name, text in scripts.items() if re.search(r"import \{[^}]*\bTile\b[^}]*\} from \"./tiles.js\"", text)
    }
    assert using == {"page.js", "label-tiles.js"}
    rules = {
        name: re.findall(r"(?m)^\.tile [^{]*\{", data.decode()) for name, data in _files().items() if "css" in name
    }
    assert rules["page.css"]
    assert rules["label.css"] == []


def test_keys_do_nothing_to_a_page_of_suggestions_that_was_sent(browser: Browser, tmp_path: Path) -> None:
    with page_of(browser, write_unlabelled(tmp_path / "images", 40)) as (page, site):
        label_some(page, site, 9)
        go_to(page, "confirm")
        until(page, "document.querySelectorAll('#confirm:not([hidden]) .tile').length")
        held: list[Route] = []
        page.route("**/v1/label/actions*", lambda route: held.append(route))  # it sets an attribute of the function
        page.focus("#confirm")
        page.keyboard.press("Enter")
        assert page.evaluate("document.querySelector('#confirm').classList.contains('sent')")
        for key in ("Space", "ArrowRight", "1"):
            page.keyboard.press(key)
        assert not page.evaluate("document.querySelectorAll('#confirm [aria-label*=\"not ticked\"]').length")
        held[0].continue_()
        until(page, "!document.querySelector('#confirm.sent')")
        assert len(held) == 1
        assert {item["source"] for item in items(site, "labelled")} == {"blind", "confirm", "grid"}
