"""Reports, searches and the panel's states as a person sees them: a real ComfyUI, its frontend and a real Chromium."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from test_panel_browser import LOOK_AT_IT, PANEL, PASSES, RUN, needs_chromium, opened, queue, state, wait_for_end

from foresight.evaluation.server import ComfyServer
from foresight.lab.release.pictures import CHROMIUM, FLAGS, NO_DIALOGS

pytestmark = needs_chromium
expect.set_options(timeout=30_000)  # a page answers late where other tests share the cores
ON_NODE = ".foresight-on-node .foresight-run:visible"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, comfy_server: ComfyServer) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1500, "height": 950})
    page.request.post(f"{comfy_server.url}/settings", data=NO_DIALOGS)
    opened(page, comfy_server)
    yield page
    page.close()


LOAD = """async ([name, id]) => {
    const graph = await (await fetch(`/api/workflow_templates/foresight/${name}.json`)).json()
    if (id) graph.id = id
    await app.loadGraphData(graph)
}"""
SHOW = """type => {
    const node = app.graph._nodes.find(node => node.type === type)
    app.canvas.ds.scale = 0.6
    app.canvas.centerOnNode(node)
    app.canvas.setDirty(true, true)
}"""


def report_on(page: Page, node: str, delivered: int = 1) -> None:
    """What a report shows on itself: core's picture, moving clips (what is delivered is framed), and lines of text."""
    page.evaluate(SHOW, node)
    page.wait_for_function(
        "type => app.graph._nodes.find(node => node.type === type).imgs?.[0]?.naturalWidth === 1200", arg=node
    )
    own = page.locator(f".foresight-report[data-node={node}]:visible")
    clips = own.locator(".foresight-clip img")
    expect(clips.first).to_be_visible(timeout=90_000)
    for clip in clips.all():
        clip.scroll_into_view_if_needed()
        expect(clip).to_have_js_property("complete", True)
        assert clip.evaluate("image => image.naturalWidth") > 0
    assert own.locator(".foresight-clip.foresight-delivered").count() == delivered
    text = own.locator(".foresight-text")
    lines = text.evaluate("pre => pre.textContent.split('\\n').length")
    height = text.evaluate("pre => pre.getBoundingClientRect().height / parseFloat(getComputedStyle(pre).lineHeight)")
    scale = page.evaluate("() => app.canvas.ds.scale")
    assert lines > 3 and height / scale > 0.9 * lines


def test_a_run_report_shows_itself(page, comfy_server):
    queue(page, seed=21, plan="race", steps=20, budget=0.5)
    wait_for_end(page)
    report_on(page, "ForesightRunReport")
    first = page.locator(".foresight-report:visible .foresight-text").inner_text().splitlines()[0]
    assert "model evaluations" in first and "candidate" in first.lower() or "Passed" in first


def test_a_search_shows_its_candidates_and_its_report_itself(page, comfy_server):
    page.evaluate(LOAD, ["demo_latent_search", None])
    known = page.evaluate("async () => (await (await fetch('/foresight/runs')).json()).runs.map(run => run.id)")
    page.evaluate("async () => await app.queuePrompt(0)")
    page.wait_for_function(
        """known => {
            const id = document.querySelector('.foresight-panel .foresight-run')?.dataset.run
            return id && !known.includes(id)
        }""",
        arg=known, timeout=60_000,
    )  # fmt: skip
    rows = page.locator(f"{RUN} >> .foresight-candidate")
    expect(rows.nth(1)).to_be_visible(timeout=60_000)
    wait_for_end(page, timeout=120_000)
    searched = [trial for trial in state(comfy_server)["trials"] if trial["kind"] == "search"]
    assert rows.count() == len(searched) > 2
    expect(page.locator(f"{RUN} >> .foresight-candidate.foresight-chosen")).to_have_count(1)
    expect(page.locator(f"{RUN} >> .foresight-label")).to_have_text("trial 0, step 50")  # the finished clip comes last
    assert "not touched" not in page.locator(RUN).inner_text()
    report_on(page, "ForesightEnhancerReport")


def test_a_streaming_report_shows_its_lines(page):
    page.evaluate(LOAD, ["demo_streaming", None])
    page.evaluate("async () => await app.queuePrompt(0)")
    text = page.locator(".foresight-report[data-node=ForesightStreamingReport] .foresight-text")
    expect(text).to_contain_text("forwards for 7 latents; the plain stream takes 34", timeout=90_000)
    page.evaluate(SHOW, "ForesightStreamingReport")
    expect(text).to_be_visible()
    assert "Chunks as drawn first score" in text.inner_text()


def test_what_was_asked_for_is_no_longer_said_once_it_is_done(page, comfy_server):
    queue(page, seed=3, tau=PASSES, steps=400, plan="paper")
    page.locator(f"{RUN} >> .foresight-reject").press("Enter")
    page.wait_for_function(
        """() => document.querySelector('.foresight-panel .foresight-run .foresight-stories').children.length > 1
            && !document.querySelector('.foresight-panel .foresight-run .foresight-notice').textContent""",
        timeout=60_000,
    )
    page.locator(f"{RUN} >> .foresight-stop").click()
    wait_for_end(page, timeout=60_000)
    expect(page.locator(f"{RUN} >> .foresight-notice")).to_have_text("")


def test_progress_reaches_the_last_step_and_the_finished_clip(page, comfy_server):
    queue(page, seed=22, plan="race", steps=30, budget=0.5)
    wait_for_end(page)
    expect(page.locator(f"{RUN} >> .foresight-label")).to_contain_text("step 30")
    done = page.locator(f"{RUN} >> .foresight-candidate.foresight-delivered .foresight-fill")
    assert done.evaluate("bar => bar.style.width") == "100%"


def test_a_graph_shows_its_own_runs_and_entries_tell_them_apart(page, comfy_server):
    for _ in range(2):
        page.evaluate(LOAD, ["demo_one_node", "11111111-1111-4111-8111-111111111111"])
        queue(page, seed=23, plan="race", steps=20, budget=0.0, tau=0.1 + 0.01 * _)
        page.evaluate(LOOK_AT_IT)
        wait_for_end(page)
        expect(page.locator(ON_NODE)).to_have_count(1)
    named = page.locator(".foresight-choices select >> nth=0 >> option").all_inner_texts()
    same = [text for text in named if "seed 23" in text]
    assert len(same) == len(set(same)) >= 2
    page.evaluate(LOAD, ["demo_one_node", "22222222-2222-4222-8222-222222222222"])
    page.evaluate(LOOK_AT_IT)
    page.wait_for_timeout(1000)
    expect(page.locator(ON_NODE)).to_have_count(0)
    expect(page.locator(f"{PANEL} .foresight-run:visible")).to_have_count(1)
    page.evaluate(LOAD, ["demo_one_node", "11111111-1111-4111-8111-111111111111"])  # opened again
    page.evaluate(LOOK_AT_IT)
    expect(page.locator(ON_NODE)).to_have_count(1)


# As long as people write them: 180 words and more, of which ViCLIP reads 32 tokens at a time.
LONG = 9 * "a red circle moves left on a black background. the picture is calm and clean, with soft light from above. "
BATCH = """size => {
    const node = app.graph._nodes.find(node => node.widgets?.some(widget => widget.name === 'batch_size'))
    node.widgets.find(widget => widget.name === 'batch_size').value = size
}"""


def test_a_long_prompt_a_batch_of_two_and_a_tau_that_nothing_reaches_are_all_told(page, comfy_server):
    page.evaluate(BATCH, 2)
    queue(page, prompt=LONG, seed=24, plan="race", steps=20, budget=0.5, self_refine="off", tau=1.0)
    wait_for_end(page, timeout=120_000)
    expect(page.locator(RUN)).to_contain_text("by its frames")  # Run Report scores the clip again, after the run's end
    found = state(comfy_server)["report"]
    pieces = found["settings"]["scored_pieces"]
    assert len(LONG.split()) >= 180 and len(pieces) > 5 and " ".join(pieces).split() == LONG.split()
    one, two = (f"{score:.3f}" for score in found["final_scores"])
    best = max(found["candidates"], key=lambda row: row["score"])
    assert best["state"] == "delivered" and found["final_score"] == max(found["final_scores"]) < 1
    panel = page.locator(RUN).inner_text()
    assert "still below 1.000" in panel and one in panel and two in panel
    assert "pieces" in page.locator(f"{RUN} >> .foresight-read").inner_text()
    report_on(page, "ForesightRunReport", delivered=2)
    lines = page.locator(".foresight-report:visible .foresight-text").inner_text().splitlines()
    assert "still below tau 1.000" in lines[0]
    assert any(f"in {len(pieces)} pieces" in line for line in lines)
    for number in (1, 2):
        assert sum(line.startswith(f"Item {number}: final score") for line in lines) == 1
    names = page.locator(".foresight-report:visible .foresight-clip b").all_inner_texts()
    assert names[:2] == ["the finished clip, item 1", "the finished clip, item 2"]
