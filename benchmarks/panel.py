"""What an open live panel costs: ``python -m foresight.benchmarks.panel``.

Samples demo clips through a real server, in turn with nobody looking and with a panel open, and prints the ratio of the
median times. ``--page chromium`` opens the real frontend with the panel (its own drawing then shares the machine's
cores with sampling, as on any machine without a GPU); ``--page requests``, the default, asks for all that such a page
asks for. Writes docs/results/panel_PAGE.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from ..evaluation.comfyui import comfyui_path, load_comfyui
from ..evaluation.results import environment
from ..evaluation.server import ComfyServer, seconds
from ..evaluation.thumbnails import CHROMIUM, FLAGS, NO_DIALOGS, READY
from ..evaluation.workflows import api_graph, node_of

ROOT = Path(__file__).resolve().parent.parent
EVERY = 0.08  # seconds between two looks: what web/foresight.js draws at most


@contextmanager
def requests(server: ComfyServer) -> Iterator[None]:
    """A page's requests: the run's state once, and each picture as it comes."""
    closed, had = threading.Event(), set()

    def look() -> None:
        while not closed.wait(EVERY):
            runs = json.loads(server.get("/foresight/runs"))["runs"]
            if not runs or not runs[0]["live"]:
                continue
            state = json.loads(server.get(f"/foresight/runs/{runs[0]['id']}"))
            shown = [(i, trial["pictures"][-1]) for i, trial in enumerate(state["trials"]) if trial["pictures"]]
            if shown and (state["id"], shown[-1]) not in had:
                had.add((state["id"], shown[-1]))
                index, step = shown[-1]
                try:
                    server.get(f"/foresight/runs/{state['id']}/trials/{index}/steps/{step}.jpg")
                except urllib.error.HTTPError:
                    continue  # dropped meanwhile

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        closed.set()
        thread.join()


@contextmanager
def chromium(server: ComfyServer) -> Iterator[None]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.request.post(f"{server.url}/settings", data=NO_DIALOGS)
        page.goto(server.url)
        page.wait_for_function(READY)
        page.keyboard.press("Escape")
        page.click(".foresight-tab-button")
        yield
        browser.close()


PAGES = {"requests": requests, "chromium": chromium}


def measure(server: ComfyServer, page: str, rounds: int, runs: int) -> dict[str, Any]:
    """Medians in seconds over `rounds` x `runs` clips each way; each round does both, to meet the same machine."""
    info, seed = server.object_info(), 0

    def clip() -> float:
        nonlocal seed
        seed += 1
        prompt = api_graph("demo_one_node", info, seed=seed, tau=-0.99)  # passes: the same work each time
        return seconds(server.queue(prompt, targets=[node_of(prompt, "ForesightRunReport")]))

    clip()  # loads everything
    closed, opened = [], []
    for _ in range(rounds):
        closed += [clip() for _ in range(runs)]
        with PAGES[page](server):
            opened += [clip() for _ in range(runs)]
    medians = statistics.median(closed), statistics.median(opened)
    return {
        "page": page, "clips_each": rounds * runs, "closed_seconds": round(medians[0], 4),
        "open_seconds": round(medians[1], 4), "ratio": round(medians[1] / medians[0], 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", choices=list(PAGES), default="requests")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--runs", type=int, default=8)
    a = parser.parse_args()
    load_comfyui()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        with ComfyServer(comfyui_path(), base, ROOT, log=base / "server.log") as server:
            found = measure(server, a.page, a.rounds, a.runs)
    ran = environment(f"python -m foresight.benchmarks.panel --page {a.page}")
    path = ROOT / "docs" / "results" / f"panel_{a.page}.json"
    path.write_text(json.dumps({"environment": ran, **found}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
