"""The page of `resnet-lab ui` in a browser: the table, curves, differences, the dialog."""

import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_ui import EVIL, write_run, write_sweep

from resnet_lab.ui.server import Server
from resnet_lab.ui.views import Views

api = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.chdir(tmp_path)
    for n, accuracy in enumerate((0.5, 0.9, 0.7)):
        folder = write_run(tmp_path / f"outputs/runs/run{n}", **{"val/acc": accuracy})
        text = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(text.replace("depth: 20", f"depth: {20 + n}"))
    evil = write_run(tmp_path / "outputs/runs" / EVIL.replace("/", "|"))
    (evil / "labels.json").write_text(json.dumps({"tags": [EVIL], "note": EVIL}))
    write_sweep(tmp_path / "outputs/sweeps/grid", states="finished finished waiting")
    server = Server(Views([Path("outputs")]), 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


class Page:
    """A page of the browser; what is wrong in it fails the test."""

    def __init__(self, browser: Any, server: Server, width: int, height: int) -> None:
        self.faults: list[str] = []
        self.context = browser.new_context(viewport={"width": width, "height": height})
        self.page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on(
            "console",
            lambda line: self.faults.append(line.text) if line.type == "error" else None,
        )
        self.page.on("dialog", lambda dialog: self.faults.append(dialog.message))
        self.page.goto(server.guard.address)
        self.page.wait_for_selector("td.name")

    def names(self) -> list[str]:
        return self.page.locator("td.name").all_inner_texts()


@pytest.fixture
def page(browser: Any, server: Server, request: pytest.FixtureRequest) -> Iterator[Any]:
    opened = Page(browser, server, *getattr(request, "param", (1400, 900)))
    yield opened
    opened.context.close()
    assert opened.faults == []


def test_sorted_by_a_click_and_back(page: Page) -> None:
    page.page.get_by_label("by sweep").uncheck()
    head = page.page.get_by_role("button", name="val acc %")
    head.click()
    assert page.names()[-1] == "seed=2"  # what has no value is last
    column = page.page.locator("tbody tr td:nth-child(8)")
    figures = [float(text) for text in column.all_inner_texts() if text]
    assert figures == sorted(figures, reverse=True)
    sorted_head = page.page.locator("th[aria-sort=descending]")
    assert sorted_head.inner_text().startswith("val acc %")
    head.click()
    figures = [float(text) for text in column.all_inner_texts() if text]
    assert figures == sorted(figures)


def test_filtered_by_words_and_by_a_condition(page: Page) -> None:
    box = page.page.get_by_role("searchbox")
    box.fill("run1")
    api.expect(page.page.locator("td.name")).to_have_text(["run1"])
    box.fill("val/acc > 0.6 and model.depth < 22")
    api.expect(page.page.locator("td.name")).to_have_text(["run1"])
    box.fill("val/akk > 0.6")
    api.expect(page.page.locator("#fault")).to_contain_text("val/acc")
    box.fill("sweeps/grid/seed=1")  # looks like a condition, and is in a row as it stands
    api.expect(page.page.locator("td.name")).to_have_text(["seed=1"])
    api.expect(page.page.locator("#fault")).to_be_hidden()
    box.fill("")
    api.expect(page.page.locator("#fault")).to_be_hidden()
    api.expect(page.page.locator("#count")).to_have_text("7 runs")


def test_a_config_key_becomes_a_column_and_is_remembered(page: Page) -> None:
    page.page.get_by_text("Columns").click()
    page.page.get_by_label("Add a config key as a column").fill("model.depth")
    page.page.keyboard.press("Enter")
    page.page.get_by_label("data", exact=True).uncheck()
    page.page.keyboard.press("Escape")
    last = page.page.locator("tbody tr td:last-child")
    api.expect(last.filter(has_text="21")).to_have_count(1)
    page.page.reload()
    api.expect(page.page.locator("thead th").last).to_have_text("model.depth")
    assert "data" not in page.page.locator("thead th").all_inner_texts()


def test_sweeps_fold(page: Page) -> None:
    before = len(page.names())
    page.page.get_by_label("Fold sweep grid").click()
    assert len(page.names()) == before - 3
    page.page.get_by_label("Unfold sweep grid").click()
    assert len(page.names()) == before


def test_seeds_are_drawn_as_mean_and_band(page: Page) -> None:
    page.page.get_by_label("Choose the runs of sweep grid").check()
    api.expect(page.page.locator(".legend")).to_have_text("all settings alike (3 seeds)")
    for chart in page.page.locator(".chart > svg").all():
        assert chart.locator("polyline").count() == 2  # training and validation
        assert chart.locator("polyline.dashed").count() == 1
        assert chart.locator("polygon.band").count() == 1
    api.expect(page.page.locator("#content")).to_contain_text("No epoch yet: seed=2 (waiting)")
    page.page.get_by_label("seeds together").uncheck()
    assert page.page.locator(".chart > svg").first.locator("polyline").count() == 4
    chart = page.page.locator(".chart > svg").last
    chart.hover()
    values = page.page.locator(".values").last
    assert re.match(r"epoch [12]\n", values.inner_text())
    chart.focus()
    page.page.keyboard.press("ArrowLeft")
    assert "10.00 seed=0, validation" in values.inner_text()


def test_new_epochs_are_drawn_while_one_looks(page: Page, tmp_path: Path) -> None:
    page.page.get_by_label("Choose run1").check()
    line = page.page.locator(".chart > svg").first.locator("polyline").first
    assert len(str(line.get_attribute("points")).split()) == 2
    metrics = tmp_path / "outputs/runs/run1/metrics.csv"
    metrics.write_text(metrics.read_text() + "3,0.5,0.9,0.6,0.8,4.0\n")
    api.expect(line).to_have_attribute("points", re.compile(r"^\S+ \S+ \S+$"), timeout=10_000)


def test_differences_and_pictures(page: Page) -> None:
    for name in ("run0", "run2"):
        page.page.get_by_label(f"Choose {name}", exact=True).check()
    page.page.get_by_role("tab", name="Diff").click()
    row = page.page.get_by_role("row", name="model.depth")
    row.wait_for()
    assert set(row.locator("td").all_inner_texts()) == {"20", "22"}
    page.page.get_by_role("tab", name="Pictures").click()
    api.expect(page.page.locator("#content img")).to_have_count(2)


def test_a_name_that_looks_like_code_is_text(page: Page) -> None:
    name = EVIL.replace("/", "|")
    assert name in page.names()
    page.page.get_by_label(f"Details of {name}").click()
    api.expect(page.page.locator("#content h3").first).to_have_text(name)
    page.page.get_by_text("Columns").click()
    page.page.get_by_label("note", exact=True).check()
    assert EVIL in page.page.locator("tbody td").all_inner_texts()
    assert page.page.locator("tbody script").count() == 0


def test_resume_asks_first_and_can_be_cancelled(page: Page, server: Server) -> None:
    page.page.get_by_label("Resume sweep grid").click()
    dialog = page.page.locator("dialog")
    api.expect(dialog).to_contain_text("Resume the sweep grid?")
    assert "train.py -m sweep.name=grid model=resnet20 seed=0,1" in dialog.inner_text()
    api.expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    page.page.keyboard.press("Escape")
    api.expect(dialog).to_be_hidden()
    assert server.actions.started == {}


@pytest.mark.parametrize("page", [(390, 844)], indirect=True)
def test_on_a_phone_nothing_goes_beyond_the_screen(page: Page) -> None:
    def overhang() -> int:
        width: int = page.page.evaluate("document.documentElement.scrollWidth")
        return width - 390

    page.page.get_by_label("Choose the runs of sweep grid").check()
    for tab in ("Curves", "Pictures", "Diff", "Details"):
        page.page.get_by_role("tab", name=tab).click()
        page.page.wait_for_timeout(300)
        assert overhang() <= 0, tab
    page.page.get_by_text("Columns").click()
    assert overhang() <= 0
    page.page.keyboard.press("Escape")
    page.page.get_by_label("Resume sweep grid").click()
    page.page.locator("dialog[open]").wait_for()
    assert overhang() <= 0


@pytest.mark.skipif(os.name != "posix", reason="locks")
def test_a_running_job_has_a_card_and_a_button(page: Page, tmp_path: Path) -> None:
    import fcntl

    folder = write_run(tmp_path / "outputs/runs/now", "running")
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        card = page.page.locator(".card")
        api.expect(card).to_contain_text("epoch 2 of 3", timeout=10_000)
        assert "left" in card.inner_text()
    finally:
        os.close(descriptor)
    api.expect(card).to_have_count(0, timeout=10_000)
