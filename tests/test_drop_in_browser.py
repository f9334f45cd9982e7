"""ComfyUI's own Wan templates, raced: one node replaced by hand, in its real frontend."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, sync_playwright

from foresight.evaluation.server import ComfyServer
from foresight.lab.release.pictures import CHROMIUM, FLAGS, NO_DIALOGS, READY
from foresight.scoring.graph_words import texts

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt install chromium)")
OPEN = """async (workflow) => {
    await app.loadGraphData(workflow)
    Object.assign(app.canvas.ds, {scale: 0.6, offset: [300, 200]})
    app.canvas.setDirty(true, true)
    return (await app.graphToPrompt()).output
}"""
# Ours below everything, with KSampler's values; its id, and that of the node that is replaced.
ADD = """async (id) => {
    const old = app.graph.nodes.find(node => node.type === "KSampler"), node = LiteGraph.createNode(id)
    app.graph.add(node)
    node.pos = [700, 950]
    for (const widget of old.widgets) node.widgets.find(own => own.name === widget.name).value = widget.value
    app.canvas.setDirty(true, true)
    await new Promise(done => setTimeout(done, 500))
    return {id: String(node.id), height: node.size[1], old: String(old.id)}
}"""
# Where on the page the two ends of each link stand that has to be drawn.
ENDS = """({id, old}) => {
    const at = (node, input, slot) => {
        const [x, y] = app.canvas.convertOffsetToCanvas(node.getConnectionPos(input, slot))
        const box = app.canvas.canvas.getBoundingClientRect()
        return [x + box.x, y + box.y]
    }
    const node = app.graph.getNodeById(id), before = app.graph.getNodeById(old), drags = []
    before.inputs.forEach((input, slot) => {
        if (input.link == null) return
        const link = app.graph.links.get(input.link)
        const same = node.inputs.findIndex(own => own.name === input.name)
        drags.push([at(app.graph.getNodeById(link.origin_id), false, link.origin_slot), at(node, true, same)])
    })
    for (const each of before.outputs[0].links) {
        const link = app.graph.links.get(each)
        drags.push([at(node, false, 0), at(app.graph.getNodeById(link.target_id), true, link.target_slot)])
    }
    return drags
}"""
REMOVE = "async id => { app.graph.remove(app.graph.getNodeById(id)); return (await app.graphToPrompt()).output }"


@pytest.fixture(scope="module")
def page(comfy_server: ComfyServer) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1600, "height": 1200})
        page.request.post(f"{comfy_server.url}/settings", data=NO_DIALOGS)
        page.goto(comfy_server.url)
        page.wait_for_function(READY)
        page.keyboard.press("Escape")
        yield page
        browser.close()


@pytest.mark.parametrize("template", ["text_to_video_wan", "image_to_video_wan"])
def test_a_template_is_raced_by_replacing_one_node(page, comfy_server, template):
    plain = page.evaluate(OPEN, json.loads(comfy_server.get(f"/templates/{template}.json")))
    page.keyboard.press("Escape")  # what is told of missing model files
    page.wait_for_timeout(500)
    added = page.evaluate(ADD, "ForesightKSampler")
    assert added["height"] <= 420
    drags = page.evaluate(ENDS, added)
    assert len(drags) == 5
    for (x, y), (to_x, to_y) in drags:
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(to_x, to_y, steps=8)
        page.mouse.up()
        page.wait_for_timeout(100)
    raced = page.evaluate(REMOVE, added["old"])
    ours, id = raced.pop(added["id"]), added["id"]
    theirs = plain.pop(added["old"])
    assert {name: ours["inputs"].pop(name) for name in theirs["inputs"]} == theirs["inputs"]
    assert ours["inputs"] == {"budget": 0.25, "self_refine": "later", "prompt": ""}
    relinked = json.loads(json.dumps(plain).replace(f'["{added["old"]}", 0]', f'["{id}", 0]'))
    assert raced.keys() == relinked.keys() and all(raced[key]["inputs"] == relinked[key]["inputs"] for key in raced)
    graph = raced | {id: {**ours, "inputs": theirs["inputs"]}}
    assert list(texts(graph, comfy_server.object_info(), id)) == [raced["6"]["inputs"]["text"].strip()]


@pytest.mark.parametrize("node", ["ForesightKSampler", "ForesightSamplerCustomAdvanced"])
def test_a_drop_in_has_at_most_twelve_widgets_and_is_low(page, node):
    height, widgets = page.evaluate(
        "id => { const node = LiteGraph.createNode(id); return [node.size[1], node.widgets.length] }", node
    )
    assert height <= 420 and widgets <= 12
