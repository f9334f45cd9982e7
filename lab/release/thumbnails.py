"""The example graphs' pictures in the template browser: ``python -m foresight.lab.release.thumbnails``.

Opens each graph in the frontend of the ComfyUI in COMFYUI_PATH (or of dev.py's) and writes workflows/NAME.jpg. Needs
Chromium.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from ...evaluation.comfyui import comfyui_path
from ...evaluation.server import ComfyServer
from ..graphs.forms import GRAPHS

ROOT = Path(__file__).resolve().parents[2]
SIZE = 512
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# A browser that looks nothing up by itself.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
READY = "() => !!window.app?.graph && !!LiteGraph.registered_node_types.ForesightSampler"
NO_DIALOGS = {"Comfy.TutorialCompleted": True, "Comfy.Workflow.ShowMissingModelsWarning": False}
# The whole graph, read from the left: what is wider than high is cut to a square there.
FIT = """async (workflow) => {
    await app.loadGraphData(workflow)
    await new Promise(done => setTimeout(done, 700))  // the frontend moves its view first
    const nodes = workflow.nodes.filter(node => node.type !== "MarkdownNote")
    const left = Math.min(...nodes.map(n => n.pos[0])), top = Math.min(...nodes.map(n => n.pos[1])) - 80
    const bottom = Math.max(...nodes.map(n => n.pos[1] + n.size[1]))
    app.canvas.ds.scale = 960 / (bottom - top + 60)
    app.canvas.ds.offset = [-left + 40 + 80 / app.canvas.ds.scale, -top + 20 + 140 / app.canvas.ds.scale]
    app.canvas.setDirty(true, true)
}"""


@contextmanager
def frontend(width: int, height: int) -> Iterator[Page]:
    """The frontend of a ComfyUI that has this pack, ready for use."""
    if CHROMIUM is None:
        raise SystemExit("there is no Chromium on this machine (Debian: apt install chromium)")
    with tempfile.TemporaryDirectory() as base, sync_playwright() as playwright:
        folder = Path(base)
        with ComfyServer(comfyui_path(), folder, ROOT, log=folder / "server.log", cpu=True,
                         arguments=("--disable-api-nodes",)) as server:  # fmt: skip
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_page(viewport={"width": width, "height": height})
            page.request.post(f"{server.url}/settings", data=NO_DIALOGS)
            page.goto(server.url)
            page.wait_for_function(READY)
            yield page
            browser.close()


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with frontend(1400, 1240) as page:
        for name in GRAPHS:
            path = ROOT / "workflows" / f"{name}.json"
            page.evaluate(FIT, json.loads(path.read_text(encoding="utf-8")))
            page.wait_for_timeout(700)
            shot = Image.open(io.BytesIO(page.screenshot(clip={"x": 90, "y": 140, "width": 1000, "height": 1000})))
            shot.convert("RGB").resize((SIZE, SIZE), Image.LANCZOS).save(path.with_suffix(".jpg"), quality=85)
            print(path.with_suffix(".jpg").name)


if __name__ == "__main__":
    main()
