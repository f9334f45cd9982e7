"""The streaming demo: the embedded student makes long clips latent by latent in ComfyUI, without and with a gate.

    python -m foresight.evaluation.streaming_demo --server http://127.0.0.1:8188 --count 6 --out out

`python dev.py demo --streaming` starts the server and calls this. Each clip is three times as long as those of the
training; its objects turn where its prompt says so (demo/script.py), and a program judges each part against its own
prompt. The graph is workflows/demo_streaming.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..demo.captions import prompt
from ..demo.preset import STREAM_LATENTS
from ..demo.script import Script, frames_of, judge_script, there_and_back
from ..demo.world import DIFFICULTIES
from .demo_command import environment, read_frames
from .graphs import WORKFLOWS, ObjectInfo, api_form, fill_defaults, node_of
from .media import write_clip
from .server import ComfyClient, ExecutionFailed, Prompt, seconds

TIMES = 3  # as long as the clips of the training
HEADER = (
    f"{'':>5} {'prompt, as it begins':<52} {'gate':<4} {'chunks':>6} {'redrawn':>7} {'taken back':>10} "
    f"{'forwards':>8}  right, part by part"
)


@dataclass(frozen=True)
class Run:
    """One stream. right: whether each part shows what its prompt states."""

    frames: np.ndarray
    seconds: float
    report: dict[str, Any]
    right: list[bool]

    def entry(self) -> dict[str, Any]:
        """redrawn: chunks that were drawn again; taken_back: finished ones that were given up with them."""
        report = self.report
        return {
            "chunks": len(report["schedule"]), "forwards": report["nfe"], "forwards_plain": report["nfe_plain"],
            "redrawn": report.get("redraws", 0), "taken_back": report.get("taken_back", 0),
            "seconds": round(self.seconds, 3), "right": self.right,
        }  # fmt: skip


def scripts(count: int) -> list[Script]:
    """Test prompts by index: easy, medium and hard in turn, of those that state a motion, which can turn."""
    found, index = [], 0
    while len(found) < count:
        difficulty = DIFFICULTIES[index % len(DIFFICULTIES)]
        _, scene = prompt("test", difficulty, index // len(DIFFICULTIES))
        if any(thing.motion not in (None, "still") for thing in scene.objects):
            found.append(there_and_back(scene, TIMES * STREAM_LATENTS, index))
        index += 1
    return found


def prompt_lines(script: Script) -> str:
    """The prompts as Streaming Guider reads them: each with the chunk, here the latent, at which it begins."""
    begins = [script.which.index(number) for number in range(len(script.segments))]
    return "\n".join(f"{begin}: {text}" for begin, text in zip(begins, script.prompts, strict=True))


def streaming_graph(object_info: ObjectInfo, script: Script, seed: int, gated: bool) -> Prompt:
    """The example graph for a script; its frames are saved one by one, as node "frames"."""
    graph = api_form(json.loads((WORKFLOWS / "demo_streaming.json").read_text(encoding="utf-8")))

    def inputs(class_type: str) -> dict[str, Any]:
        return graph[node_of(graph, class_type)]["inputs"]

    inputs("EmptyHunyuanLatentVideo")["length"] = frames_of(script.latents)
    inputs("RandomNoise")["noise_seed"] = seed
    inputs("ForesightStreamingGuider")["prompts"] = inputs("ForesightChunkGate")["prompt"] = prompt_lines(script)
    if not gated:
        del inputs("ForesightStreamingSampler")["chunk_gate"]
    images = inputs("SaveAnimatedWEBP")["images"]
    graph["frames"] = {"class_type": "SaveImage", "inputs": {"images": images, "filename_prefix": "foresight_stream"}}
    return fill_defaults(graph, object_info)


def generate(client: ComfyClient, graph: Prompt, script: Script) -> Run:
    text = node_of(graph, "PreviewAny")
    entry = client.queue(graph, targets=["frames", text])
    frames = read_frames(client, entry["outputs"]["frames"]["images"])
    report = json.loads(entry["outputs"][text]["text"][0])
    right = [each.right for each in judge_script(torch.from_numpy(frames), script)]
    return Run(frames, seconds(entry), report, right)


def line(index: int, text: str, gated: bool, entry: dict[str, Any]) -> str:
    name = " " * 58 if gated else f"{index + 1:>4}. {text if len(text) <= 52 else text[:51] + '…':<52}"
    parts = " ".join("right" if right else "wrong" for right in entry["right"])
    return (
        f"{name} {'with' if gated else '-':<4} {entry['chunks']:>6} {entry['redrawn']:>7} {entry['taken_back']:>10} "
        f"{entry['forwards']:>8}  {parts}"
    )


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """For the streams without and with the gate: right parts, by part; whole clips; sums of what they took."""
    summary: dict[str, Any] = {"runs": len(runs)}
    for name in ("plain", "gated"):
        entries = [run[name] for run in runs]
        summary[name] = {
            "right": [sum(column) for column in zip(*(entry["right"] for entry in entries), strict=True)],
            "clips_right": sum(all(entry["right"]) for entry in entries),
            **{key: sum(entry[key] for entry in entries) for key in ("forwards", "redrawn", "taken_back", "seconds")},
        }  # fmt: skip
    return summary


def total(summary: dict[str, Any]) -> str:
    plain, gated, runs = summary["plain"], summary["gated"], summary["runs"]

    def shares(side: dict[str, Any]) -> str:
        return ", ".join(f"{100 * right / runs:.0f} %" for right in side["right"])

    return (
        f"\n{runs} streams of {TIMES * STREAM_LATENTS} chunks, {TIMES} times as long as in training.\n"
        f"Right, part by part: {shares(plain)} without the gate, {shares(gated)} with it; whole clips: "
        f"{plain['clips_right']} and {gated['clips_right']}.\n"
        f"Forwards: {plain['forwards']} and {gated['forwards']} ({gated['forwards'] / plain['forwards']:.2f} "
        f"times); {gated['redrawn']} chunks redrawn, {gated['taken_back']} taken back. Time: {plain['seconds']:.0f} s "
        f"and {gated['seconds']:.0f} s."
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="http://127.0.0.1:8188", help="address of a running ComfyUI with this pack")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first run; each further run has the next one")
    parser.add_argument("--count", type=int, default=6, help="number of prompts")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for clips and streaming.json")
    options = parser.parse_args(arguments)
    if options.count < 1:
        parser.error(f"--count is {options.count}: it must be 1 or more.")
    options.out.mkdir(parents=True, exist_ok=True)
    client = ComfyClient(options.server)
    nodes = client.object_info()
    chosen = scripts(options.count)
    # Loads the models, so that no run's time holds that; and says what is missing.
    short = Script(chosen[0].scene)
    try:
        generate(client, streaming_graph(nodes, short, options.seed, True), short)
    except ExecutionFailed as error:
        raise SystemExit(str(error)) from None

    print(HEADER)
    runs = []
    for index, script in enumerate(chosen):
        run: dict[str, Any] = {"prompts": script.prompts, "seed": options.seed + index}
        for name, gated in (("plain", False), ("gated", True)):
            graph = streaming_graph(nodes, script, run["seed"], gated)
            made = generate(client, graph, script)
            run[name] = made.entry()
            print(line(index, script.prompts[0], gated, run[name]), flush=True)
            write_clip(made.frames, options.out / f"stream_{index + 1:02}_{name}", {"prompt": graph})
        runs.append(run)
    summary = summarise(runs)
    report = {"runs": runs, "summary": summary, "environment": environment(client)}
    (options.out / "streaming.json").write_text(json.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
    print(total(summary))
    print(f"Clips and streaming.json are in {options.out.resolve()}")


if __name__ == "__main__":
    main()
