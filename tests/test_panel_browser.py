"""The live panel as a person meets it: a real ComfyUI, its own frontend and a real Chromium."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from foresight.evaluation.server import ComfyServer
from foresight.lab.release.pictures import CHROMIUM, FLAGS, NO_DIALOGS, READY

ROOT = Path(__file__).resolve().parent.parent
PANEL = ".foresight-panel"
RUN = f"{PANEL} .foresight-run >> nth=0"
RUN_ENDED = f"{PANEL} .foresight-run:first-child[data-live=false]"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt install chromium)")
expect.set_options(timeout=30_000)  # a page answers late where other tests share the cores
# A demo run of 20 steps takes a second: too quick to be pressed at.
SLOW = {"steps": 400, "plan": "paper"}
PASSES = -0.99  # -1 would be the scorer's own tau


@pytest.mark.skipif(which("node") is None, reason="no node on this machine")
def test_the_pages_own_store():
    ran = subprocess.run(["node", "--test", str(ROOT / "tests" / "js")], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, comfy_server: ComfyServer, tmp_path: Path) -> Iterator[Page]:
    """The demo template, opened from the template browser's own list."""
    page = browser.new_page(viewport={"width": 1500, "height": 950})
    page.request.post(f"{comfy_server.url}/settings", data=NO_DIALOGS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    opened(page, comfy_server)
    yield page
    page.screenshot(path=tmp_path / "end.png")
    page.close()
    assert not [error for error in errors if "foresight" in error.lower()]


def opened(page: Page, server: ComfyServer) -> None:
    page.goto(server.url)
    page.wait_for_function(READY)
    page.keyboard.press("Escape")
    page.wait_for_function("() => !document.querySelector('.p-dialog-mask')")
    page.evaluate(
        """async () => {
            const templates = await (await fetch('/api/workflow_templates')).json()
            if (!templates.foresight.includes('demo_one_node')) throw new Error('not in the template browser')
            await app.loadGraphData(await (await fetch('/api/workflow_templates/foresight/demo_one_node.json')).json())
        }"""
    )
    page.click(".foresight-tab-button")
    page.wait_for_selector(PANEL)


PRESS_RUN = """async (widgets) => {
    const node = app.graph._nodes.find(node => node.type === 'ForesightSampler')
    for (const [name, value] of Object.entries(widgets)) node.widgets.find(w => w.name === name).value = value
    await app.queuePrompt(0)
}"""


def queue(page: Page, **widgets: Any) -> None:
    """Presses Run with these values in the node, and waits for the first preview of the new run in the panel."""
    known = page.evaluate("async () => (await (await fetch('/foresight/runs')).json()).runs.map(run => run.id)")
    page.evaluate(PRESS_RUN, widgets)
    page.wait_for_function(
        """known => {
            const run = document.querySelector('.foresight-panel .foresight-run')
            return run.dataset.run && !known.includes(run.dataset.run) && !run.querySelector('canvas').hidden
        }""",
        arg=known, timeout=60_000,
    )  # fmt: skip


def wait_for_end(page: Page, timeout: float = 60_000) -> None:
    page.wait_for_selector(f"{RUN_ENDED} .foresight-cost:visible", timeout=timeout)


def state(server: ComfyServer) -> dict[str, Any]:
    newest = json.loads(server.get("/foresight/runs"))["runs"][0]
    return json.loads(server.get(f"/foresight/runs/{newest['id']}"))


@needs_chromium
def test_reject_now_puts_a_candidate_aside_and_accept_now_finishes_one(page, comfy_server):
    queue(page, seed=3, plan="race", budget=0.5, self_refine="off", steps=600)
    page.locator(f"{RUN} >> .foresight-reject").press("Enter")
    expect(page.locator(f"{RUN} >> .foresight-state").nth(0)).to_have_text("put aside by you", timeout=90_000)
    expect(page.locator(f"{RUN} >> .foresight-candidate").nth(1)).to_have_attribute("aria-current", "", timeout=90_000)
    page.locator(f"{RUN} >> .foresight-accept").press("Enter")
    wait_for_end(page, timeout=120_000)
    first, second = state(comfy_server)["report"]["candidates"]
    assert first["by_hand"] == "rejected" and first["state"] == "put aside" and first["nfe"] <= 72  # its look
    assert second["by_hand"] == "accepted" and second["state"] == "delivered"
    said = page.locator(RUN).inner_text()
    assert "You accepted candidate 2: it is delivered." in said and "not touched" not in said


@needs_chromium
def test_reject_now_starts_trial_1_also_after_a_reload(page, comfy_server):
    queue(page, seed=3, tau=PASSES, **SLOW)
    opened(page, comfy_server)  # all that the page knew is gone
    page.wait_for_selector(f"{PANEL} .foresight-run[data-live=true] .foresight-picture:visible")
    page.locator(f"{RUN} >> .foresight-reject").press("Enter")
    wait_for_end(page, timeout=120_000)
    found = state(comfy_server)
    assert found["report"]["trials"][0]["verdict"]["rule"] == "user_reject"
    assert found["report"]["trials"][1]["trial"] == "1"
    assert "you rejected it" in page.locator(RUN).inner_text()


@needs_chromium
def test_stop_cancels_and_says_so(page, comfy_server):
    queue(page, seed=4, tau=PASSES, **SLOW)
    page.click(f"{RUN} >> .foresight-stop")
    wait_for_end(page)
    assert "Stopped by the user." in page.locator(RUN).inner_text()
    queue(page, seed=5, tau=PASSES, steps=20)  # and the server goes on as before
    wait_for_end(page)
    assert "a plain run takes" in page.locator(f"{RUN} >> .foresight-cost").inner_text()


@needs_chromium
def test_two_runs_stand_side_by_side_in_another_tab_on_a_phone_in_a_light_theme(page, browser, comfy_server):
    for seed in (6, 7):
        queue(page, seed=seed, tau=PASSES)
        wait_for_end(page)
        page.wait_for_function(
            "seed => document.querySelector('.foresight-choices select').innerText.includes(`seed ${seed}`)", arg=seed
        )
    other = browser.new_page(viewport={"width": 1100, "height": 900})
    other.request.post(f"{comfy_server.url}/settings", data={"Comfy.ColorPalette": "light"})
    try:
        opened(other, comfy_server)
        options = other.locator(".foresight-choices select >> nth=1 >> option")
        assert "seed 6" in options.nth(2).inner_text()
        other.select_option(".foresight-choices select >> nth=1", index=2)
        assert other.locator(f"{PANEL} .foresight-run:visible").count() == 2
        other.evaluate("() => document.querySelector('.foresight-panel').style.width = '320px'")
        assert other.evaluate("() => document.querySelector('.foresight-panel').scrollWidth") <= 320
    finally:
        other.request.post(f"{comfy_server.url}/settings", data={"Comfy.ColorPalette": "dark"})
        other.close()


# What lies outside the view is not drawn.
LOOK_AT_IT = """() => {
    const graph = app.canvas.graph
    app.canvas.ds.scale = 0.5
    app.canvas.centerOnNode(graph.nodes.find(node => node.type === 'ForesightSampler'))
    app.canvas.setDirty(true, true)
}"""


@needs_chromium
def test_the_node_shows_its_own_run(page, comfy_server):
    queue(page, seed=9, tau=PASSES)
    page.evaluate(LOOK_AT_IT)
    wait_for_end(page)
    expect(page.locator(".foresight-run:visible")).to_have_count(2)  # in the sidebar and on the node
    outside = page.locator(".foresight-run:visible:not(.foresight-panel *)")
    assert state(comfy_server)["settings"]["prompt"] in outside.inner_text()


@needs_chromium
def test_no_timer_runs_while_nobody_can_see_the_panel(page):
    queue(page, seed=8, tau=PASSES)
    wait_for_end(page)
    canvas = page.locator(f"{RUN} >> canvas")
    page.click(".foresight-tab-button")  # closes the tab
    page.wait_for_timeout(300)
    made = page.evaluate(
        """async () => {
            let calls = 0
            const drawImage = CanvasRenderingContext2D.prototype.drawImage
            const shown = document.querySelector('.foresight-panel canvas')
            CanvasRenderingContext2D.prototype.drawImage = function (...rest) {
                if (!this.canvas.isConnected && this.canvas.classList.contains('foresight-picture')) calls++
                return drawImage.apply(this, rest)
            }
            await new Promise(done => setTimeout(done, 800))
            CanvasRenderingContext2D.prototype.drawImage = drawImage
            return calls
        }"""
    )
    assert made == 0 and not canvas.is_visible()


@needs_chromium
def test_a_newcomer_opens_the_template_presses_run_and_reads_what_happened(browser, comfy_server):
    page = browser.new_page(viewport={"width": 1500, "height": 950})
    page.request.post(f"{comfy_server.url}/settings", data=NO_DIALOGS)
    page.goto(comfy_server.url)
    page.wait_for_function(READY)
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text("foresight", exact=True).last.click()
    page.click("[data-testid=template-workflow-demo_one_node]")
    page.wait_for_function("() => app.graph.nodes.some(node => node.type === 'ForesightSampler')")
    page.click(".foresight-tab-button")
    known = [run["id"] for run in json.loads(comfy_server.get("/foresight/runs"))["runs"]]
    page.click("[data-testid=queue-button]")
    page.wait_for_function(
        """known => {
            const id = document.querySelector('.foresight-panel .foresight-run')?.dataset.run
            return id && !known.includes(id)
        }""",
        arg=known, timeout=60_000,
    )  # fmt: skip
    wait_for_end(page, timeout=120_000)
    found, said = state(comfy_server), page.locator(RUN).inner_text()
    report = found["report"]
    assert report["prompt"] in said
    assert f"{report['nfe']} model evaluations, a plain run takes {report['nfe_plain']}" in said
    if report["nfe"] > report["nfe_plain"]:
        assert f", this one at most {report['nfe_worst_case']}." in said
    assert not page.locator(f"{RUN} >> .foresight-ladder").is_visible()
    rows = page.locator(f"{RUN} >> .foresight-candidate")
    assert rows.count() == len(report["candidates"])
    for row, told in zip(rows.all(), report["candidates"], strict=True):
        assert f"score {told['score']:.3f}" in row.inner_text() and f"{told['nfe']} evaluations" in row.inner_text()
        assert row.get_by_text(told["state"]).count() == 1
        assert row.locator("img").evaluate("image => image.complete && image.naturalWidth > 0")
    page.close()


@needs_chromium
def test_the_papers_plan_has_its_ladder_and_no_candidates(page, comfy_server):
    queue(page, seed=14, tau=PASSES, plan="paper")
    wait_for_end(page)
    rungs = page.locator(f"{RUN} >> .foresight-ladder li")
    assert rungs.count() == 4 and rungs.nth(0).get_attribute("title") == "Trial 0: accepted"
    assert page.locator(f"{RUN} >> .foresight-stories li").count() == 1
    assert page.locator(f"{RUN} >> .foresight-candidate").count() == 0


@needs_chromium
def test_the_panel_speaks_the_language_of_comfyui(page, comfy_server):
    page.request.post(f"{comfy_server.url}/settings", data={"Comfy.Locale": "zh"})
    try:
        opened(page, comfy_server)
        queue(page, seed=15, plan="race", steps=20)
        wait_for_end(page)
        assert "候选 1" in page.locator(RUN).inner_text() and "已交付" in page.locator(RUN).inner_text()
    finally:
        page.request.post(f"{comfy_server.url}/settings", data={"Comfy.Locale": "en"})


@needs_chromium
def test_pointer_slider_and_keys_choose_what_is_seen(page, comfy_server):
    queue(page, seed=11, tau=PASSES, steps=40, plan="paper")
    wait_for_end(page)
    canvas, label = page.locator(f"{RUN} >> canvas"), page.locator(f"{RUN} >> .foresight-label")
    (trial,) = state(comfy_server)["trials"]
    last = trial["size"][0] - 1
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for share, frame in ((0.05, 0), (0.98, last)):  # the pointer holds the frame that it points at
        page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        expect(canvas).to_have_attribute("data-frame", str(frame))
    page.mouse.move(box["x"] - 40, box["y"])
    page.click(f"{RUN} >> .foresight-play")
    held = int(canvas.get_attribute("data-frame"))
    canvas.press("ArrowLeft")
    expect(canvas).to_have_attribute("data-frame", str((held - 1) % (last + 1)))
    slider = page.locator(f"{RUN} >> .foresight-history")
    slider.focus()
    slider.press("Home")
    expect(label).to_have_text(f"trial 0, step {trial['pictures'][0]}")
    slider.press("End")
    expect(label).to_have_text(f"trial 0, step {trial['pictures'][-1]}")


@needs_chromium
def test_a_node_inside_a_subgraph_shows_its_run(page):
    page.evaluate(
        """() => {
            const node = app.graph.nodes.find(node => node.type === 'ForesightSampler')
            const { subgraph } = app.graph.convertToSubgraph(new Set([node]))
            app.canvas.setGraph(subgraph)
        }"""
    )
    inside = """async (seed) => {
        const [node] = app.canvas.graph.nodes.filter(node => node.type === 'ForesightSampler')
        for (const [name, value] of [['seed', seed], ['tau', -0.99]])
            node.widgets.find(w => w.name === name).value = value
        await app.queuePrompt(0)
    }"""
    page.evaluate(inside, 12)
    page.evaluate(LOOK_AT_IT)
    wait_for_end(page)
    expect(page.locator(".foresight-run:visible:not(.foresight-panel *)")).to_have_count(1)


@needs_chromium
def test_the_node_shows_its_run_in_nodes_2(page, comfy_server):
    page.request.post(f"{comfy_server.url}/settings", data={"Comfy.VueNodes.Enabled": True})
    try:
        opened(page, comfy_server)
        queue(page, seed=13, tau=PASSES)
        page.evaluate(LOOK_AT_IT)
        wait_for_end(page)
        assert page.locator("[data-node-id]").count() > 3  # drawn as elements, not on the canvas
        outside = page.locator(".foresight-run:visible:not(.foresight-panel *)")
        expect(outside).to_have_count(1)
        assert state(comfy_server)["settings"]["prompt"] in outside.inner_text()
    finally:
        page.request.post(f"{comfy_server.url}/settings", data={"Comfy.VueNodes.Enabled": False})
