"""The pack in ComfyUI's language: nodes, panel and help pages, in its own frontend and a real Chromium."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from foresight.evaluation.server import ComfyServer
from foresight.lab.release.help_pages import FRAMES, PAGES, page, pages
from foresight.lab.release.pictures import CHROMIUM, FLAGS, NO_DIALOGS, READY
from foresight.trials.picture import said

PANEL = ".foresight-panel"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt install chromium)")
expect.set_options(timeout=30_000)  # a page answers late where other tests share the cores
# What a node is called, its first widget, and where it stands in the menu.
NODE = """id => {
    const node = LiteGraph.createNode(id)
    return [node.title, node.widgets[0].label, LiteGraph.registered_node_types[id].category]
}"""
SPEAK = "language => app.extensionManager.setting.set('Comfy.Locale', language)"


@pytest.fixture
def chinese(comfy_server: ComfyServer) -> Iterator[Page]:
    """ComfyUI's page, opened with the language set to Chinese."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.request.post(f"{comfy_server.url}/settings", data={**NO_DIALOGS, "Comfy.Locale": "zh"})
        page.goto(comfy_server.url)
        page.wait_for_function(READY)
        page.keyboard.press("Escape")
        page.wait_for_function("() => !document.querySelector('.p-dialog-mask')")
        yield page
        page.request.post(f"{comfy_server.url}/settings", data={"Comfy.Locale": "en"})
        browser.close()


@needs_chromium
def test_the_nodes_speak_the_language_of_comfyui(chinese):
    for node, *words in (
        ("ForesightSampler", "Foresight 采样器", "提示词", "Foresight/采样"),
        ("ForesightSeedAudition", "种子试镜", "种子", "Foresight/采样"),
        ("ForesightFailureGate", "动态失败检测门", "提示词", "Foresight/论文方案"),
        ("KSampler", "K采样器", "种子", "采样"),  # core's own are still whole
    ):
        title, widget, category = chinese.evaluate(NODE, node)
        assert [title, widget] == words[:2] and category.endswith(words[2])


@needs_chromium
def test_the_panel_changes_its_language_with_comfyui(chinese):
    chinese.click(".foresight-tab-button")
    for language, words in (("zh", "采样时"), ("en", "appear here"), ("fr", "appear here"), ("zh", "采样时")):
        chinese.evaluate(SPEAK, language)
        hint = chinese.locator(f"{PANEL} > .foresight-hint")
        expect(hint).to_have_count(1)
        expect(hint).to_contain_text(words)


@needs_chromium
def test_a_report_names_its_clips_in_the_language_of_comfyui(chinese):
    name, about = said("candidate {number}, delivered", number=2), said("final score {score} ({of})", score="0.123",
                                                                        of=said("by its frames"))  # fmt: skip
    clip = {"name": name, "about": about, "said": {"name": name.parts, "about": about.parts}, "filename": "none.webp"}
    shown = chinese.evaluate(
        """clip => {
            const node = LiteGraph.createNode('ForesightRunReport')
            app.graph.add(node)
            node.onExecuted({ text: ['text'], foresight_clips: [clip, { ...clip, said: undefined }] })
            const element = node.widgets.find(widget => widget.name === 'foresight_report').element
            return [...element.querySelectorAll('figcaption')].map(each => each.textContent)
        }""",
        clip,
    )
    assert shown == ["候选 2，已交付最终分数 0.123（按帧）", f"{name}{about}"]


def test_the_help_pages_of_other_languages_are_what_their_command_writes(comfy_server: ComfyServer):
    """If this fails: `python -m foresight.lab.release.help_pages`."""
    made = dict(pages())
    assert made and set(PAGES.glob("*/*.md")) == set(made)
    for path, text in made.items():
        assert path.read_text(encoding="utf-8") == text, path
        # Where both frontends look first.
        served = comfy_server.get(f"/extensions/foresight/docs/{path.parent.name}/{path.name}").decode()
        assert served == text


def test_a_help_page_names_every_input_and_keeps_its_table_whole():
    english = "# N\n\n## Inputs\n\n| input | type | what |\n|---|---|---|\n| a, b | INT | x |\n\n## Outputs\n\n"
    english += "| output | type | what |\n|---|---|---|\n| out | LATENT | y |\n"
    inputs = {"a": {"name": "甲", "tooltip": "一 | 二\n三"}, "b": {"name": "b"}}
    texts = {"display_name": "节点", "description": "说明。", "inputs": inputs, "outputs": {"0": {"name": "出"}}}
    made = page("N", english, texts, "zh")
    assert made.startswith("# 节点\n\n说明。\n\n![节点](images/N.png)\n")
    assert "| 甲 (a) | INT | 一 \\| 二 三 |\n| b | INT |  |\n" in made and "| 出 | LATENT |  |" in made
    assert all(part in made for part in FRAMES["zh"]["inputs"])
