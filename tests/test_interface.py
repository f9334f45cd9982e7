"""What saved workflows and API graphs rest on: each node's inputs in order, with default and range, and its outputs.

tests/interface.txt has them, a line each. A change that is meant is written there by

    python dev.py test tests/test_interface.py --interface
"""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path

from foresight import comfy_entrypoint

KEPT = Path(__file__).with_name("interface.txt")
ELSEWHERE = {"sampler_name", "scheduler", "endpoint", "weights", "converter"}  # core's choices, the machine's
TOLD = (
    "default", "min", "max", "step", "round", "multiline", "dynamicPrompts", "control_after_generate", "lazy",
    "advanced",
)  # fmt: skip


def lines() -> list[str]:
    extension = asyncio.run(comfy_entrypoint())
    found = []
    for node in asyncio.run(extension.get_node_list()):
        info = node.GET_NODE_INFO_V1()
        shows = ", shows something" if info["output_node"] else ""
        outputs = ", ".join(map(" ".join, zip(info["output_name"], info["output"], strict=True)))
        found += ["", f"{info['name']} -> {outputs or 'nothing'}{shows}"]
        for kind, inputs in info["input"].items():
            for name, (type_, *rest) in inputs.items():
                options = rest[0] if rest else {}
                told = [f"{key} {options[key]!r}" for key in TOLD if key in options]
                if type_ == "COMBO" and name not in ELSEWHERE:
                    told.append(f"one of {[each for each in options['options'] if not each.endswith('.json')]}")
                found.append(f"  {kind} {name}: {', '.join([type_, *told])}")
    return found[1:]


def test_every_widget_is_as_shared_workflows_know_it(request):
    now = lines()
    if request.config.getoption("--interface"):
        KEPT.write_text("\n".join(now) + "\n", encoding="utf-8")
    kept = KEPT.read_text(encoding="utf-8").splitlines()
    changed = [f"- {line}" for line in kept if line not in now] + [f"+ {line}" for line in now if line not in kept]
    assert now == kept, "\n".join([*changed, "Is this meant? The first lines of this test say how to keep it."])


def test_an_input_that_a_graph_leaves_out_is_what_its_widget_begins_with():
    """Graphs of the API and of before the widget leave optional inputs out, and then core gives none."""
    extension = asyncio.run(comfy_entrypoint())
    checked = set()
    for node in asyncio.run(extension.get_node_list()):
        taken = inspect.signature(node.execute).parameters
        for name, (_, *rest) in node.GET_NODE_INFO_V1()["input"].get("optional", {}).items():
            if rest and "default" in rest[0] and name in taken:
                assert taken[name].default == rest[0]["default"], f"{node.__name__}.{name}"
                checked.add(name)
    assert {"budget", "self_refine", "prompt", "schedule_steps"} <= checked
