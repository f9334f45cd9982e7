"""What an open live panel costs: ``python -m foresight.benchmarks.panel``.

Samples demo clips through a real server for a page in Chromium, in turn with the Foresight tab closed and open, and
prints the ratio of the median seconds of a run (sampling and inspection). The page's own drawing shares the cores with
sampling, as on any machine without a GPU. Writes docs/results/panel.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from ..evaluation.comfyui import comfyui_path, load_comfyui
from ..evaluation.results import environment
from ..evaluation.server import ComfyServer
from ..evaluation.thumbnails import CHROMIUM, FLAGS, NO_DIALOGS, READY
from ..evaluation.workflows import api_graph, node_of

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def frontend(server: ComfyServer) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.request.post(f"{server.url}/settings", data=NO_DIALOGS)
        page.goto(server.url)
        page.wait_for_function(READY)
        page.keyboard.press("Escape")
        yield page
        browser.close()


def measure(server: ComfyServer, page: Page, rounds: int, runs: int) -> dict[str, Any]:
    """Medians in seconds over `rounds` x `runs` clips each way; each round does both, to meet the same machine."""
    info, seed = server.object_info(), 0
    client = page.evaluate("() => app.api?.clientId ?? window.comfyAPI.api.api.clientId")

    def clip() -> float:
        nonlocal seed
        seed += 1
        prompt = api_graph("demo_one_node", info, seed=seed, tau=-0.99)  # passes: the same work each time
        server.wait(server.submit(prompt, [node_of(prompt, "ForesightRunReport")], client))
        newest = json.loads(server.get("/foresight/runs"))["runs"][0]["id"]
        return json.loads(server.get(f"/foresight/runs/{newest}"))["report"]["seconds"]

    clip()  # loads everything
    closed, opened = [], []
    for _ in range(rounds):
        closed += [clip() for _ in range(runs)]
        page.click(".foresight-tab-button")
        page.wait_for_selector(".foresight-panel")
        opened += [clip() for _ in range(runs)]
        page.click(".foresight-tab-button")
        page.wait_for_selector(".foresight-panel", state="detached")
    medians = statistics.median(closed), statistics.median(opened)
    return {
        "clips_each": rounds * runs, "closed_seconds": round(medians[0], 4), "open_seconds": round(medians[1], 4),
        "ratio": round(medians[1] / medians[0], 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--runs", type=int, default=6)
    a = parser.parse_args()
    load_comfyui()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        with ComfyServer(comfyui_path(), base, ROOT, log=base / "server.log") as server, frontend(server) as page:
            found = measure(server, page, a.rounds, a.runs)
    ran = environment(f"python -m foresight.benchmarks.panel --rounds {a.rounds} --runs {a.runs}")
    (ROOT / "docs" / "results" / "panel.json").write_text(
        json.dumps({"environment": ran, **found}, indent=1) + "\n", encoding="utf-8"
    )
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
