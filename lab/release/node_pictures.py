"""The nodes' pictures on their help pages: ``python -m foresight.lab.release.node_pictures``.

Draws each node in ComfyUI's own frontend and writes web/docs/images/NODE.png. Needs Chromium.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

from PIL import Image

from .thumbnails import frontend

ROOT = Path(__file__).resolve().parents[2]
COLOURS = 64  # flat areas and text: a palette is a quarter of the size
# One node in the middle of the view, at a size where its text is drawn; gives where it stands, in pixels.
DRAW = """async (id) => {
    await app.loadGraphData({version: 0.4, nodes: [], links: [], last_node_id: 0, last_link_id: 0})
    await new Promise(done => setTimeout(done, 700))  // the frontend moves its view first
    const node = LiteGraph.createNode(id)
    app.graph.add(node)
    const [width, height] = node.size
    app.canvas.ds.scale = Math.min(1, 1000 / (height + 40))
    node.pos = [400, 160 / app.canvas.ds.scale + 40]
    app.canvas.ds.offset = [0, 0]
    app.canvas.setDirty(true, true)
    await new Promise(done => setTimeout(done, 700))
    const scale = app.canvas.ds.scale, box = app.canvas.canvas.getBoundingClientRect()
    return {x: box.x + (node.pos[0] - 10) * scale, y: box.y + (node.pos[1] - 64) * scale,
            width: (width + 20) * scale, height: (node.size[1] + 74) * scale}
}"""


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    folder = ROOT / "web" / "docs" / "images"
    folder.mkdir(exist_ok=True)
    nodes = json.loads((ROOT / "node_list.json").read_text(encoding="utf-8"))
    with frontend(1400, 1240) as page:
        page.keyboard.press("Escape")
        for id in nodes:
            shot = Image.open(io.BytesIO(page.screenshot(clip=page.evaluate(DRAW, id)))).convert("RGB")
            shot.quantize(COLOURS, dither=Image.Dither.NONE).save(folder / f"{id}.png", optimize=True)
            print(f"{id}.png")


if __name__ == "__main__":
    main()
