"""What an open live panel costs: ``python -m foresight.lab.benchmarks.panel``.

Samples demo clips through a real server for a page in Chromium, each clip with the Foresight tab closed and again with
it open, and prints the median ratio of their seconds (sampling and inspection). Pairs, because a machine's speed drifts
by more than what is measured. One core is left to the page, as sampling on a GPU does: where sampling takes every core,
the page, which ComfyUI redraws at each step with or without a tab, takes its time from the sampler. Writes
docs/results/panel.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

from ...evaluation.comfyui import load_comfyui
from ...evaluation.graphs import node_of, one_node
from ...evaluation.results import environment
from ...evaluation.server import ComfyServer
from ..release.pictures import frontend

ROOT = Path(__file__).resolve().parents[2]


def measure(server: ComfyServer, page: Page, pairs: int) -> dict[str, Any]:
    """Medians over `pairs` seeds, in seconds, and of the pairs' ratios with their quartiles."""
    info = server.object_info()
    client = page.evaluate("() => app.api?.clientId ?? window.comfyAPI.api.api.clientId")

    def clip(seed: int) -> float:
        prompt = one_node("demo", info, seed=seed, tau=-0.99)  # passes: the same work each time
        server.wait(server.submit(prompt, [node_of(prompt, "ForesightRunReport")], client))
        newest = json.loads(server.get("/foresight/runs"))["runs"][0]["id"]
        return json.loads(server.get(f"/foresight/runs/{newest}"))["report"]["seconds"]

    def opened(seed: int) -> float:
        page.click(".foresight-tab-button")
        page.wait_for_selector(".foresight-panel")
        seconds = clip(seed)
        page.click(".foresight-tab-button")
        page.wait_for_selector(".foresight-panel", state="detached")
        return seconds

    clip(0)  # loads everything
    both = [(clip(seed), opened(seed + pairs)) for seed in range(1, pairs + 1)]  # other seeds: nothing is cached
    low, middle, high = statistics.quantiles([after / before for before, after in both], n=4)
    seconds_closed, seconds_open = (statistics.median(side) for side in zip(*both, strict=True))
    return {
        "pairs": pairs, "closed_seconds": round(seconds_closed, 3), "open_seconds": round(seconds_open, 3),
        "ratio": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=24)
    pairs = parser.parse_args().pairs
    load_comfyui()
    threads = max(1, (os.cpu_count() or 2) - 1)
    with frontend(variables={"OMP_NUM_THREADS": str(threads)}) as (server, page):
        result = {"sampling_threads": threads, **measure(server, page, pairs)}
    content = {"environment": environment(f"python -m foresight.lab.benchmarks.panel --pairs {pairs}"), **result}
    (ROOT / "docs" / "results" / "panel.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
