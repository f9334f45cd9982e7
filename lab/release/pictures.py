"""Pictures that ComfyUI's own frontend draws: ``python -m foresight.lab.release.pictures [drop_in|nodes]``.

drop_in: docs/images/drop_in.jpg, a graph of core's before and after. nodes: web/docs/images/NODE.png, for the help
pages. From the ComfyUI in COMFYUI_PATH (or dev.py's). Needs Chromium. What graphs make is drawn by lab.graphs.cards.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import FloatRect, Page, sync_playwright

from ...evaluation.comfyui import comfyui_path
from ...evaluation.server import ComfyServer

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# A browser that looks nothing up by itself.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
READY = "() => !!window.app?.graph && !!LiteGraph.registered_node_types.ForesightSampler"
NO_DIALOGS = {"Comfy.TutorialCompleted": True, "Comfy.Workflow.ShowMissingModelsWarning": False}
SEEN = {"x": 700, "y": 230, "width": 800, "height": 610}  # of the page, where DROP_IN puts the graph
GAP, TITLE = 16, 46  # pixels
PAUSE = 700  # milliseconds: the frontend moves its view first, and draws after that
# Core's own template, or ours in KSampler's place with its links and values: where that stands on the page.
DROP_IN = """async (ours) => {
    const old = app.graph.nodes.find(node => node.type === "KSampler")
    let node = old
    for (const node of app.graph.nodes) {
        if (node.type === "MarkdownNote") app.graph.remove(node)
        const text = node.widgets?.find(widget => widget.name === "text")
        // Not every machine has letters for Wan's negative prompt.
        if (/[^\\x00-\\x7f]/.test(text?.value)) text.value = "overexposed, static, blurred details, subtitles"
    }
    if (ours) {
        node = LiteGraph.createNode("ForesightKSampler")
        app.graph.add(node)
        node.pos = [...old.pos]
        node.size[0] = old.size[0]
        for (const widget of old.widgets) node.widgets.find(own => own.name === widget.name).value = widget.value
        const origins = old.inputs.map(input => input.link == null ? null : app.graph.links.get(input.link))
        const targets = old.outputs[0].links.map(id => app.graph.links.get(id))
        old.inputs.forEach((input, slot) => {
            const link = origins[slot], own = node.inputs.findIndex(each => each.name === input.name)
            if (link) app.graph.getNodeById(link.origin_id).connect(link.origin_slot, node, own)
        })
        for (const link of targets) node.connect(0, app.graph.getNodeById(link.target_id), link.target_slot)
        app.graph.remove(old)
    }
    const nodes = app.graph.nodes, left = Math.min(...nodes.map(n => n.pos[0]))
    const top = Math.min(...nodes.map(n => n.pos[1]))
    const scale = app.canvas.ds.scale = 0.95
    app.canvas.ds.offset = [-left + 140 / scale, -top + 290 / scale]
    app.canvas.setDirty(true, true)
    const box = app.canvas.canvas.getBoundingClientRect()
    const [x, y] = app.canvas.convertOffsetToCanvas(node.pos)
    return {x: box.x + x, y: box.y + y - 30 * scale, width: node.size[0] * scale, height: (node.size[1] + 30) * scale}
}"""
# One node in the middle of the view, at a size where its text is drawn; gives where it stands, in pixels.
NODE = """async (id) => {
    const node = LiteGraph.createNode(id)
    app.graph.add(node)
    const [width, height] = node.size
    const scale = app.canvas.ds.scale = Math.min(1, 1000 / (height + 40))
    node.pos = [400, 160 / scale + 40]
    app.canvas.ds.offset = [0, 0]
    app.canvas.setDirty(true, true)
    await new Promise(done => setTimeout(done, 700))  // the live view makes it higher
    app.canvas.setDirty(true, true)
    const box = app.canvas.canvas.getBoundingClientRect()
    return {x: box.x + (node.pos[0] - 10) * scale, y: box.y + (node.pos[1] - 64) * scale,
            width: (width + 20) * scale, height: (node.size[1] + 74) * scale}
}"""
EMPTY = {"version": 0.4, "nodes": [], "links": [], "last_node_id": 0, "last_link_id": 0}


@contextmanager
def frontend(width: int = 1400, height: int = 1240, variables: Mapping[str, str] | None = None) -> Iterator[tuple]:
    """A ComfyUI that has this pack, and its frontend, ready for use: (ComfyServer, Page)."""
    if CHROMIUM is None:
        raise SystemExit("there is no Chromium on this machine (Debian: apt install chromium)")
    with tempfile.TemporaryDirectory() as base, sync_playwright() as playwright:
        folder = Path(base)
        with ComfyServer(comfyui_path(), folder, ROOT, log=folder / "server.log", arguments=("--disable-api-nodes",),
                         variables=variables) as server:  # fmt: skip
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_page(viewport={"width": width, "height": height})
            page.request.post(f"{server.url}/settings", data=NO_DIALOGS)
            page.goto(server.url)
            page.wait_for_function(READY)
            page.keyboard.press("Escape")
            yield server, page
            browser.close()


def picture(page: Page, workflow: dict, draw: str, argument: object, clip: FloatRect | None = None) -> Image.Image:
    """What `draw` shows after a workflow was opened; without a clip `draw` says which part of the page that is."""
    page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
    page.wait_for_timeout(PAUSE)
    part = page.evaluate(draw, argument)
    page.wait_for_timeout(PAUSE)
    return Image.open(io.BytesIO(page.screenshot(clip=clip or part))).convert("RGB")


def draw_drop_in(server: ComfyServer, page: Page) -> None:
    """Core's Wan 2.1 template before and after, side by side; a frame shows which node that is."""
    workflow = json.loads(server.get("/templates/text_to_video_wan.json"))
    beside = Image.new("RGB", (2 * SEEN["width"] + GAP, SEEN["height"] + TITLE), "#14181f")
    draw = ImageDraw.Draw(beside)
    for ours, title in enumerate(("Before: ComfyUI's Wan 2.1 template", "After: one node replaced")):
        page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
        page.wait_for_timeout(PAUSE)
        page.keyboard.press("Escape")  # what is told of missing model files
        node = page.evaluate(DROP_IN, bool(ours))
        page.wait_for_timeout(PAUSE)
        left = ours * (SEEN["width"] + GAP)
        beside.paste(Image.open(io.BytesIO(page.screenshot(clip=SEEN))), (left, TITLE))
        x, y = left + node["x"] - SEEN["x"], TITLE + node["y"] - SEEN["y"]
        box = (x - 5, y - 5, x + node["width"] + 5, y + node["height"] + 5)
        draw.rounded_rectangle(box, 10, outline="#38d39f", width=4)
        draw.text((left + 14, 8), title, "#f2f4f7", ImageFont.load_default(26))
    beside.save(ROOT / "docs" / "images" / "drop_in.jpg", quality=85)


def draw_nodes(_: ComfyServer, page: Page) -> None:
    for id in json.loads((ROOT / "node_list.json").read_text(encoding="utf-8")):
        # Flat areas and text: a palette is a quarter of the size.
        flat = picture(page, EMPTY, NODE, id).quantize(64, dither=Image.Dither.NONE)
        flat.save(ROOT / "web" / "docs" / "images" / f"{id}.png", optimize=True)


if __name__ == "__main__":
    with frontend(1900) as (server, page):
        for kind in sys.argv[1:] or ("drop_in", "nodes"):
            {"drop_in": draw_drop_in, "nodes": draw_nodes}[kind](server, page)
