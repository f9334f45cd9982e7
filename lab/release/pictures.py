"""Pictures that ComfyUI's own frontend draws: ``python -m foresight.lab.release.pictures [graphs|nodes]``.

graphs: workflows/NAME.jpg, for the template browser. nodes: web/docs/images/NODE.png, for the help pages. From the
ComfyUI in COMFYUI_PATH (or dev.py's). Needs Chromium.
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

from PIL import Image
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
PAUSE = 700  # milliseconds: the frontend moves its view first, and draws after that
# The whole graph, read from the left: what is wider than high is cut to a square there.
GRAPH = """async (workflow) => {
    const nodes = workflow.nodes.filter(node => node.type !== "MarkdownNote")
    const left = Math.min(...nodes.map(n => n.pos[0])), top = Math.min(...nodes.map(n => n.pos[1])) - 80
    const bottom = Math.max(...nodes.map(n => n.pos[1] + n.size[1]))
    app.canvas.ds.scale = 960 / (bottom - top + 60)
    app.canvas.ds.offset = [-left + 40 + 80 / app.canvas.ds.scale, -top + 20 + 140 / app.canvas.ds.scale]
    app.canvas.setDirty(true, true)
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


def draw_graphs(page: Page) -> None:
    for path in sorted((ROOT / "workflows").glob("*.json")):
        workflow = json.loads(path.read_text(encoding="utf-8"))
        square = picture(page, workflow, GRAPH, workflow, {"x": 90, "y": 140, "width": 1000, "height": 1000})
        square.resize((512, 512), Image.Resampling.LANCZOS).save(path.with_suffix(".jpg"), quality=85)


def draw_nodes(page: Page) -> None:
    for id in json.loads((ROOT / "node_list.json").read_text(encoding="utf-8")):
        # Flat areas and text: a palette is a quarter of the size.
        flat = picture(page, EMPTY, NODE, id).quantize(64, dither=Image.Dither.NONE)
        flat.save(ROOT / "web" / "docs" / "images" / f"{id}.png", optimize=True)


if __name__ == "__main__":
    with frontend() as (_, page):
        for kind in sys.argv[1:] or ("graphs", "nodes"):
            {"graphs": draw_graphs, "nodes": draw_nodes}[kind](page)
