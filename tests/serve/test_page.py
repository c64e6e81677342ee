"""The web page: its API, and the page in a browser with mouse, keyboard and phone."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
from browser import browsing, chromium, until
from encoded_images import coloured_png
from fastapi import FastAPI
from PIL import Image
from random_images import write_classes
from served import tiny_model
from servers import serving

import headstart as hs
from headstart.engine.plan import EnginePlan
from headstart.serve.access import AccessPolicy
from headstart.serve.app import build_app
from headstart.serve.batching import InferenceService
from headstart.serve.corrections import Corrections
from headstart.serve.errors import HttpError
from headstart.serve.page import PageBackend
from headstart.serve.watch.run_reader import RunReader

pytestmark = pytest.mark.usefixtures("small_networks")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Route

EXTERNAL = re.compile(r"""(?:src|href)\s*=\s*["'](?:https?:)?//|url\(\s*["']?(?:https?:)?//|@import|import\(""")


@pytest.fixture(scope="module", autouse=True)
def _plain_engine() -> Iterator[None]:
    """PyTorch only: preparing other engines takes longer than the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headstart.pipeline.plan.measure_engines", lambda *_args, **_options: EnginePlan())
        patch.setattr("headstart.serve.batching.EXPECTED_IMAGES", 1)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> hs.Run:
    folder = tmp_path_factory.mktemp("page")
    data = write_classes(folder / "colours", {"blue": 40, "green": 40, "red": 40})
    return hs.train(data, out=folder / "run", image_size=64, device="cpu")


@pytest.fixture(scope="module")
def model(run: hs.Run) -> hs.Model:
    return hs.load(run.folder)


@pytest.fixture(scope="module")
def served(run: hs.Run, model: hs.Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Corrections]]:
    own = Corrections(tmp_path_factory.mktemp("kept") / "kept")
    service = InferenceService(model, run=run.folder, device="cpu")
    with serving(build_app(service, corrections=own, log=None), service.state) as where:
        yield where, own


@pytest.fixture
def site(served: tuple[str, Corrections]) -> str:
    return served[0]


@pytest.fixture
def kept(served: tuple[str, Corrections]) -> Corrections:
    """Corrections, empty at the start of each test."""
    for own in served[1].all():
        served[1].remove(own.key)
    return served[1]


def sent(data: bytes, **form: str) -> dict[str, object]:
    return {"files": {"file": ("a.png", data, "image/png")}, "data": form}


@pytest.mark.slow
def test_the_page_requests_no_other_host_and_its_policy_forbids_it(site: str) -> None:
    names = [f"/{own}" for own in re.findall(r"page/[\w.]+", httpx.get(site).text)]
    assert len(names) >= 3
    for path in ["/", "/watch", *names, "/page/api.js", "/page/chart.js", "/page/watch.js"]:
        answer = httpx.get(site + path)
        assert answer.status_code == 200, path
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not EXTERNAL.search(answer.text), path
        assert not re.search(r"\son\w+=|style=|<script(?![^>]*src=)|<style", answer.text), path
    for path in ["/page/..%2fapp.py", "/page/nothing.js", "/page/%00", "/page/index.html%2f.."]:
        assert httpx.get(site + path).status_code == 404, path


def test_a_heat_map_is_an_image(site: str) -> None:
    answer = httpx.post(f"{site}/v1/explain", **sent(coloured_png(1, "red"), label="red"), timeout=60)
    assert answer.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answer.content)).size == (64, 64)
    wrong = httpx.post(f"{site}/v1/explain", **sent(coloured_png(1, "red"), label="purple"))
    assert wrong.status_code == 422
    assert "no class 'purple'" in wrong.json()["error"]["reason"]
    assert httpx.post(f"{site}/v1/explain", **sent(b"text", label="red")).status_code == 422


def test_the_nearest_neighbour_of_a_training_image_is_that_image(site: str, run: hs.Run, model: hs.Model) -> None:
    table = [line.split(",") for line in (run.folder / "split.csv").read_text().splitlines()[1:]]
    path, label = next((row[0], row[1]) for row in table if row[2] == "train")
    told = httpx.post(f"{site}/v1/nearest", **sent(Path(path).read_bytes()), timeout=60).json()
    assert told["among"] == told["of"] == sum(row[2] == "train" for row in table)
    first = told["nearest"][0]
    assert (first["path"], first["label"]) == (path, label)
    assert first["similarity"] == pytest.approx(1, abs=2e-3)
    assert first["image"].startswith("data:image/jpeg;base64,")
    alike = [own["similarity"] for own in told["nearest"]]
    assert alike == sorted(alike, reverse=True)


def test_a_missing_training_image_is_reported(run: hs.Run, model: hs.Model, tmp_path: Path) -> None:
    moved = (run.folder / "split.csv").read_text().replace(str(run.folder.parent), str(tmp_path / "gone"))
    (tmp_path / "split.csv").write_text(moved)
    page = PageBackend(InferenceService(model, run=tmp_path, device="cpu"), None)
    told = page.nearest(page.pixels(coloured_png(1, "red")))
    assert {own["image"] for own in told["nearest"]} == {""}
    assert all(own["path"].startswith(str(tmp_path / "gone")) for own in told["nearest"])


def test_corrections_and_neighbours_are_disabled_without_folder_or_run(model: hs.Model, tmp_path: Path) -> None:
    page = PageBackend(InferenceService(model, run=None, device="cpu"), None)
    about = page.describe()
    assert (about["run"], about["nearest"], about["corrections"]) == (False, False, False)
    assert page.list_corrections()["count"] == 0
    for ask in (
        lambda: page.keep(coloured_png(1, "red"), "a"),
        lambda: page.nearest(page.pixels(coloured_png(1, "red"))),
    ):
        with pytest.raises(HttpError) as refused:
            ask()
        assert refused.value.status == 404
    other = tmp_path / "split.csv"
    other.write_text("path,label,split,content,left_out\n")
    assert PageBackend(InferenceService(model, run=tmp_path, device="cpu"), None).describe()["nearest"] is False


def test_both_pages_have_one_name_for_a_run(site: str, run: hs.Run, model: hs.Model) -> None:
    assert httpx.get(f"{site}/v1/page").json()["name"] == run.folder.name == RunReader(run.folder).state()["name"]
    assert (
        PageBackend(InferenceService(model, device="cpu"), None).describe()["name"] == model.data["name"] == "colours"
    )


def test_a_model_of_several_labels_is_shown_and_not_corrected(tmp_path: Path) -> None:
    page = PageBackend(
        InferenceService(tiny_model(thresholds=(0.5, 0.5, 0.5)), device="cpu"), Corrections(tmp_path / "kept")
    )
    about = page.describe()
    assert (about["multi_label"], about["corrections"], about["classes"]) == (True, False, ["9", "10", "é"])
    with pytest.raises(HttpError, match="stores no corrections"):
        page.keep(coloured_png(1, "red"), "9")


def test_a_correction_is_stored_listed_shown_and_removed(site: str, run: hs.Run, kept: Corrections) -> None:
    data = coloured_png(901, "red")
    told = httpx.post(f"{site}/v1/corrections", **sent(data, label="purple"), timeout=60).json()
    assert Path(told["file"]).read_bytes() == data
    listed = httpx.get(f"{site}/v1/corrections").json()
    assert (listed["count"], listed["labels"]) == (1, {"purple": 1})
    assert listed["folder"] == str(kept.folder)
    assert listed["train"] == f"headstart retrain {run.folder} --corrections {kept.folder}"
    shown = httpx.get(f"{site}/v1/corrections/{told['key']}")
    assert np.asarray(Image.open(io.BytesIO(shown.content))).shape == (40, 48, 3)
    assert httpx.delete(f"{site}/v1/corrections/{told['key']}").status_code == 200
    assert httpx.delete(f"{site}/v1/corrections/{told['key']}").status_code == 404
    assert httpx.get(f"{site}/v1/corrections").json()["count"] == 0


def test_an_invalid_correction_is_refused_with_a_reason(site: str, kept: Corrections) -> None:
    for data, label, reason in [
        (coloured_png(1, "red"), "../x", "cannot contain '/'"),
        (b"text", "red", "a text file"),
    ]:
        answer = httpx.post(f"{site}/v1/corrections", **sent(data, label=label))
        assert answer.status_code == 422
        assert reason in answer.json()["error"]["reason"]
    assert not kept.all()


def test_pages_of_other_sites_cannot_change_corrections(site: str, kept: Corrections) -> None:
    kept.keep(coloured_png(1, "red"), "red")
    key = kept.all()[0].key
    for origin in ("https://evil.example", "null", site.replace("127.0.0.1", "localhost")):
        headers = {"Origin": origin}
        assert (
            httpx.post(f"{site}/v1/corrections", **sent(coloured_png(2, "red"), label="x"), headers=headers).status_code
            == 403
        )
        assert httpx.delete(f"{site}/v1/corrections/{key}", headers=headers).status_code == 403
    assert httpx.get(f"{site}/v1/corrections", headers={"Host": "evil.example"}).status_code == 403
    assert len(kept.all()) == 1
    own = httpx.post(f"{site}/v1/corrections", **sent(coloured_png(2, "red"), label="x"), headers={"Origin": site})
    assert own.status_code == 200


# ---- In a browser --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as own:
        yield own


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("mine")
    for seed, name in enumerate(["blue", "green", "red"], start=300):
        (folder / f"{name} <one>.png").write_bytes(coloured_png(seed, name))
    (folder / "broken.jpg").write_bytes(b"no image")
    return [*(folder / f"{name} <one>.png" for name in ("blue", "green", "red")), folder / "broken.jpg"]


def words(chance: float) -> str:
    """A percentage in the format of the page."""
    return "> 99.9\u00a0%" if chance > 0.999 else f"{100 * chance:.1f}\u00a0%"


@pytest.mark.slow
def test_images_are_dropped_answered_corrected_and_still_there_after_a_reload(
    browser: Browser, site: str, model: hs.Model, files: list[Path], kept: Corrections
) -> None:
    with browsing(browser, site) as (page, wrong):
        payload = [[file.name, list(file.read_bytes())] for file in files[:3]]
        page.evaluate(
            """(given) => {
                const carried = new DataTransfer();
                const options = { dataTransfer: carried, bubbles: true, cancelable: true };
                for (const [name, bytes] of given)
                    carried.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
                for (const kind of ["dragenter", "dragover", "drop"])
                    document.body.dispatchEvent(new DragEvent(kind, options));
            }""",
            payload,
        )
        until(page, "document.querySelectorAll('.card .bars').length === 3")
        cards = page.locator(".card")
        assert [cards.nth(i).locator(".file").inner_text() for i in range(3)] == [file.name for file in files[:3]]
        assert [cards.nth(i).locator(".bars .name").first.inner_text() for i in range(3)] == ["blue", "green", "red"]
        shown = [cards.nth(i).locator(".bars .value").first.inner_text() for i in range(3)]
        assert shown == [words(own.probability) for own in model.predict(files[:3], device="cpu")]
        assert page.locator("#status").inner_text() == "3 images"
        until(page, "document.querySelectorAll('.card .shown img').length === 3")

        first = cards.first
        held: list[Route] = []
        page.route("**/v1/explain", lambda route: held.append(route))
        first.get_by_role("button", name="Heat map").click()
        until(page, "document.querySelector('.working')?.textContent.startsWith('Computing the heat map')")
        assert first.locator(".working progress").is_visible()
        page.wait_for_timeout(50)
        held[0].fulfill(status=503, headers={"Retry-After": "1"}, json={"error": {"reason": "busy"}})
        until(page, "document.querySelector('.working span').textContent.includes('Next try in 1 s')")
        page.unroute("**/v1/explain")
        until(page, "document.querySelector('.shown .caption')?.textContent.includes('blue')")
        assert page.locator(".working").count() == 0
        wrong[:] = [text for text in wrong if "503" not in text]  # logged by the browser itself
        assert first.locator(".shown img").evaluate("(own) => own.decode().then(() => own.naturalWidth)") == 64
        first.get_by_role("button", name="Similar").click()
        until(page, "document.querySelectorAll('.near img').length === 3")

        first.get_by_role("button", name="Correct").click()
        first.get_by_label("Or a new class").fill("not/possible")
        first.get_by_role("button", name="Save").click()
        page.wait_for_selector(".more .wrong:not([hidden])")
        assert "cannot contain" in first.locator(".more .wrong").inner_text()
        first.get_by_label("Or a new class").fill("sky")
        first.get_by_role("button", name="Save").click()
        page.wait_for_selector(".corrected")
        assert [(own.label, own.file.read_bytes()) for own in kept.all()] == [("sky", files[0].read_bytes())]
        wrong[:] = [text for text in wrong if "422" not in text]  # requests that are refused on purpose

        page.reload()
        page.wait_for_selector("#kept img")
        assert "sky" in page.locator("#kept").inner_text()
        assert str(kept.folder) in page.locator("#corrections-words").inner_text()
        assert "headstart retrain" in page.locator("#train-command").inner_text()
        assert not wrong


@pytest.mark.slow
def test_the_page_works_with_the_keyboard_only(
    browser: Browser, site: str, files: list[Path], kept: Corrections
) -> None:
    with browsing(browser, site) as (page, wrong):
        page.on("filechooser", lambda _: None)  # from here on the test provides the files
        until(page, "document.querySelector('#model-classes li')")

        def focused() -> str:
            return str(page.evaluate("document.activeElement.textContent.trim()"))

        def tab_to(text: str) -> None:
            for _ in range(30):
                page.keyboard.press("Tab")
                if focused() == text:
                    return
            raise AssertionError(f"no way to {text!r}")

        page.keyboard.press("Tab")
        assert focused() == "Skip to the images"
        tab_to("Choose images")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Enter")
        chooser.value.set_files([str(file) for file in files])
        until(page, "document.querySelectorAll('.card:not(.waiting)').length === 4")
        assert "a text file" in page.locator(".card").nth(3).inner_text()
        tab_to("Correct")
        page.keyboard.press("Enter")
        assert focused() == "blue"
        page.keyboard.press("Escape")
        assert focused() == "Correct"
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector(".corrected")
        until(page, "document.activeElement.textContent === 'Change'")
        assert len(kept.all()) == 1
        assert page.locator("#said").inner_text().startswith("Saved as")
        assert not wrong


@pytest.mark.slow
def test_on_a_phone_the_page_does_not_scroll_sideways(browser: Browser, site: str, files: list[Path]) -> None:
    with browsing(browser, site, width=390) as (page, wrong):
        page.locator("#files").set_input_files([str(file) for file in files])
        until(page, "document.querySelectorAll('.card:not(.waiting)').length === 4")
        page.get_by_role("button", name="Correct").first.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        small = page.evaluate(
            """[...document.querySelectorAll("button")].filter((b) => b.offsetParent && b.offsetHeight < 36)
            .map((b) => b.textContent)"""
        )
        assert not small
        named = page.evaluate(
            """[...document.querySelectorAll("button, input:not([hidden]), img, a")].filter((e) => e.offsetParent)
            .filter((e) => !(e.textContent.trim() || e.labels?.length || e.getAttribute("aria-label") || e.alt))
            .map((e) => e.outerHTML)"""
        )
        assert named == ['<img src="page/icon.svg" alt="" width="28" height="28">']  # next to its name
        assert not wrong


@pytest.mark.exhaustive
def test_images_are_pasted_and_photographed_and_a_busy_or_absent_server_is_waited_for(
    browser: Browser, site: str, files: list[Path]
) -> None:
    with browsing(browser, site) as (page, wrong):
        until(page, "document.querySelector('#model-classes li')")
        troubles = iter(["busy", "away"])

        def troubled(route: Route) -> None:
            match next(troubles, ""):
                case "busy":
                    route.fulfill(status=503, headers={"Retry-After": "0.2"}, json={"error": {"reason": "busy"}})
                case "away":
                    route.abort()
                case _:
                    route.continue_()

        page.route("**/v1/predict", troubled)
        page.evaluate(
            """(bytes) => {
                const carried = new DataTransfer();
                carried.items.add(new File([new Uint8Array(bytes)], "pasted.png", { type: "image/png" }));
                dispatchEvent(new ClipboardEvent("paste", { clipboardData: carried }));
            }""",
            list(files[2].read_bytes()),
        )
        until(page, "document.querySelector('#notice').textContent.includes('cannot be reached')")
        page.get_by_role("button", name="Try now").click()
        until(page, "document.querySelector('.card .bars .name')?.textContent === 'red'")
        assert page.locator("#notice").is_hidden()
        assert len(wrong) == 2  # logged by the browser on 503 and on a missing response
        page.get_by_role("button", name="Take a photo").click()
        page.get_by_role("button", name="Take photo").click()
        until(page, "document.querySelectorAll('.card .bars').length === 2")
        assert page.locator(".card .file").first.inner_text().startswith("photo ")


@pytest.mark.exhaustive
def test_the_page_asks_for_the_key_and_asks_again_if_it_is_wrong(
    browser: Browser, run: hs.Run, model: hs.Model, files: list[Path], kept: Corrections
) -> None:
    kept.keep(files[0].read_bytes(), "blue")
    service = InferenceService(model, run=run.folder, device="cpu")
    app = build_app(service, admission=AccessPolicy(key="open sesame"), corrections=kept, log=None)
    with serving(app, service.state) as where, browsing(browser, where) as (page, _):
        for key in ("wrong", "open sesame"):
            page.wait_for_selector("#key-form:not([hidden])")
            page.get_by_label("Key", exact=True).fill(key)
            page.keyboard.press("Enter")
        page.wait_for_selector("#kept img")
        page.locator("#files").set_input_files([str(files[1])])
        page.wait_for_selector(".card .bars")
        page.reload()
        page.wait_for_selector("#kept img")
        assert page.locator("#key-form").is_hidden()


@pytest.mark.exhaustive
def test_a_hundred_images_do_not_freeze_the_page(browser: Browser, site: str, tmp_path: Path) -> None:
    many = []
    for i in range(100):
        many.append(tmp_path / f"{i}.png")
        many[-1].write_bytes(coloured_png(1000 + i, "green"))
    with browsing(browser, site) as (page, wrong):
        page.evaluate(
            """() => {
                window.longest = 0;
                let last = performance.now();
                setInterval(() => {
                    const now = performance.now();
                    window.longest = Math.max(window.longest, now - last);
                    last = now;
                }, 20);
            }"""
        )
        page.locator("#files").set_input_files([str(file) for file in many])
        until(page, "document.querySelectorAll('.card .bars').length === 100", seconds=60)
        assert page.locator("#status").inner_text() == "100 images"
        assert page.evaluate("window.longest") < 1000
        assert not wrong


@pytest.mark.exhaustive
def test_mounted_under_a_prefix_the_pages_work(
    browser: Browser, run: hs.Run, model: hs.Model, files: list[Path], tmp_path: Path
) -> None:
    service, parent = InferenceService(model, run=run.folder, device="cpu"), FastAPI()
    parent.mount("/colours", build_app(service, corrections=Corrections(tmp_path / "kept"), log=None))
    with serving(parent, service.state) as where, browsing(browser, where, "/colours/") as (page, wrong):
        page.set_input_files("input[type=file] >> nth=0", [str(file) for file in files[:3]])
        until(page, "document.querySelectorAll('.card .bars').length === 3")
        page.get_by_role("link", name="Run").click()
        until(page, "document.querySelector('#state-words').textContent === 'Finished'")
        assert page.url == f"{where}/colours/watch"
        assert not wrong
    service.close()
