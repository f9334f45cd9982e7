"""The demo: the embedded model generates clips in ComfyUI, with and without Foresight, and a program judges both.

    python -m foresight.evaluation.demo_command --server http://127.0.0.1:8188 --count 12 --out out

`python dev.py demo` starts the server and calls this. Prompts are taken from the test split by index: easy, medium and
hard in turn, seed 0, 1, 2, ...  Foresight races (--plan race) or goes through the paper's trials (--plan paper).
"""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..demo import preset
from ..demo.captions import parse_caption, prompt
from ..demo.judge import judge
from ..demo.world import DIFFICULTIES, Scene
from .api_graph import Graph
from .graphs import ObjectInfo, node_of, one_node, one_node_file
from .media import contact_sheet, write_clip
from .server import ComfyClient, Prompt, PromptRejected, seconds

# Output nodes to run one at a time: the others' nodes stay in the prompt, so that ComfyUI keeps what they have loaded.
PLAIN, FORESIGHT, PICTURE = "save_plain", "save", "save_picture"
SHARED = ("model", "seed", "steps", "cfg", "sampler_name", "scheduler", "latent_image")
WORDS = {True: "right", False: "wrong", None: "-"}
PLANNED = ("plan", "budget", "self_refine")  # widgets of Foresight Sampler that the report repeats
HEADER = (
    f"{'':>5} {'prompt':<52} {'score':>6} {'step':>4} {'delivered':<24} {'final':>6}  "
    f"{'judge: before, after':<20} {'NFE':>5} {'plain':>5}"
)


@dataclass(frozen=True)
class Clip:
    """frames: [F,H,W,3] uint8. seconds: from text to saved frames, by the server's clock."""

    frames: np.ndarray
    seconds: float


@dataclass(frozen=True)
class Pair:
    """The same prompt and seed without and with Foresight. picture: [H,W,3] uint8, Run Report's, with what was seen of
    each candidate or trial when it was decided on. planned: the widgets PLANNED."""

    plain: Clip
    final: Clip
    picture: np.ndarray
    report: dict[str, Any]
    planned: dict[str, Any]


def fixed_pair(index: int, first_seed: int) -> tuple[str, Scene, int]:
    difficulty = DIFFICULTIES[index % len(DIFFICULTIES)]
    return *prompt("test", difficulty, index // len(DIFFICULTIES)), first_seed + index


def demo_graph(object_info: ObjectInfo, prompt: str, seed: int, **widgets: Any) -> Prompt:
    """workflows/demo_one_node.json with these widgets of Foresight Sampler, and the same clip by core's KSampler."""
    graph = one_node("demo", object_info, prompt=prompt, seed=seed, **widgets)
    sampler, decoded = node_of(graph, "ForesightSampler"), node_of(graph, "VAEDecode")
    inputs = graph[sampler]["inputs"]

    def add(id: str, class_type: str, **inputs: Any) -> None:
        graph[id] = {"class_type": class_type, "inputs": inputs}

    add("positive", "CLIPTextEncode", clip=inputs["clip"], text=inputs["prompt"])
    add("negative", "CLIPTextEncode", clip=inputs["clip"], text=inputs["negative"])
    add("plain", "KSampler", **{name: inputs[name] for name in SHARED}, positive=["positive", 0],
        negative=["negative", 0], denoise=1.0)  # fmt: skip
    add("frames", "VAEDecode", samples=["plain", 0], vae=graph[decoded]["inputs"]["vae"])
    report = node_of(graph, "ForesightRunReport")
    for id, images in ((PLAIN, ["frames", 0]), (FORESIGHT, [decoded, 0]), (PICTURE, [report, 0])):
        add(id, "SaveImage", images=images, filename_prefix=f"foresight_demo{id.removeprefix('save')}")
    return graph


def generate(client: ComfyClient, graph: Prompt) -> Pair:
    def clip(node: str) -> Clip:
        entry = client.queue(graph, targets=[node])
        return Clip(read_frames(client, entry["outputs"][node]["images"]), seconds(entry))

    plain, final = clip(PLAIN), clip(FORESIGHT)
    # Drawing the report is no part of the run's time; the sampler's results are still there.
    report = node_of(graph, "ForesightRunReport")
    outputs = client.queue(graph, targets=[report, PICTURE])["outputs"]
    (picture,) = read_frames(client, outputs[PICTURE]["images"])
    widgets = graph[node_of(graph, "ForesightSampler")]["inputs"]
    planned = {name: widgets[name] for name in PLANNED}
    return Pair(plain, final, picture, outputs[report]["foresight_report"][0], planned)


def read_frames(client: ComfyClient, files: list[dict[str, str]]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(client.view(file))).convert("RGB")) for file in files])


def judged(frames: np.ndarray, scene: Scene | None) -> bool | None:
    """Whether the clip shows what the scene states; None when there is no scene to compare with."""
    return None if scene is None else judge(torch.from_numpy(frames), scene).right


def run_entry(text: str, seed: int, scene: Scene | None, pair: Pair) -> dict[str, Any]:
    """One entry of report.json: the first verdict (on the user's own run) and what came out of the race or the trials.

    candidates: of a race, those that were tried (see trials.report). nfe_worst_case: what the run could take at most.
    """
    report = pair.report
    first = report["trials"][0]["verdict"] or {}
    return {
        "prompt": text,
        "seed": seed,
        "accepted": first.get("accepted"),
        "predicted_score": first.get("predicted_score"),
        "stop_step": first.get("stop_step"),
        "rule": first.get("rule"),
        "trial": report["trial"],
        "final_score": report["final_score"],
        "judge_base": judged(pair.plain.frames, scene),
        "judge_final": judged(pair.final.frames, scene),
        "nfe": report["nfe"],
        "nfe_plain": report["nfe_plain"],
        "seconds": round(pair.final.seconds, 3),
        "seconds_plain": round(pair.plain.seconds, 3),
        **pair.planned,
        "candidates": report["candidates"],
        "delivered_seed": report["final_seed"],
        "nfe_worst_case": report["nfe_worst_case"],
    }


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    judged_runs = [run for run in runs if run["judge_base"] is not None]
    return {
        "runs": len(runs),
        "judged": len(judged_runs),
        "rejected": sum(run["accepted"] is False for run in runs),
        "right_base": sum(run["judge_base"] for run in judged_runs),
        "right_final": sum(run["judge_final"] for run in judged_runs),
        "repaired": sum(run["judge_final"] and not run["judge_base"] for run in judged_runs),
        "spoiled": sum(run["judge_base"] and not run["judge_final"] for run in judged_runs),
        **{key: sum(run[key] for run in runs) for key in ("nfe", "nfe_plain", "seconds", "seconds_plain")},
        "nfe_worst_case": sum(run["nfe_worst_case"] for run in runs),
        "candidates": sum(len(run["candidates"]) for run in runs),
        "other_seed": sum(run["delivered_seed"] != run["seed"] for run in runs),
        **{key: runs[0][key] for key in PLANNED},
    }


def environment(client: ComfyClient) -> dict[str, Any]:
    stats = client.system_stats()
    system = stats["system"]
    return {
        "comfyui": system["comfyui_version"],
        "torch": system["pytorch_version"],
        "python": system["python_version"].split()[0],
        "os": system["os"],
        "device": stats["devices"][0]["name"],
    }


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def delivered(run: dict[str, Any]) -> str:
    """Which candidate of how many, or by which trial and the rule that led to it."""
    for row in run["candidates"]:
        if row["state"] == "delivered":
            return f"candidate {row['candidate']} of {len(run['candidates'])}"
    return f"trial {run['trial']}, {(run['rule'] or 'not inspected').replace('_', ' ')}"


def line(index: int, run: dict[str, Any]) -> str:
    text = run["prompt"] if len(run["prompt"]) <= 52 else run["prompt"][:51] + "…"
    verdicts = f"{WORDS[run['judge_base']]}, {WORDS[run['judge_final']]}"
    return (
        f"{index + 1:>4}. {text:<52} {number(run['predicted_score']):>6} {run['stop_step'] or '-':>4} "
        f"{delivered(run):<24} {number(run['final_score']):>6}  {verdicts:<20} {run['nfe']:>5} {run['nfe_plain']:>5}"
    )


def total(summary: dict[str, Any]) -> str:
    ratio, most = (summary[key] / summary["nfe_plain"] for key in ("nfe", "nfe_worst_case"))
    if summary["plan"] == "race":
        settings = f"budget {summary['budget']:.0%}, self-refined: {summary['self_refine']}"
        others = f"another seed delivered in {summary['other_seed']}"
        tried = f"{summary['candidates']} candidates tried ({settings}), {others}"
    else:
        tried = f"{summary['rejected']} rejected early"
    return (
        f"\n{summary['runs']} runs, {tried}.\n"
        f"Right before: {summary['right_base']} of {summary['judged']}, after: {summary['right_final']} "
        f"({summary['repaired']} repaired, {summary['spoiled']} spoiled).\n"
        f"Model evaluations: {summary['nfe']} against {summary['nfe_plain']} plain ({ratio:.2f} times, at most "
        f"{most:.2f}). Time: {summary['seconds']:.0f} s against {summary['seconds_plain']:.0f} s plain."
    )


def write_files(run: dict[str, Any], pair: Pair, stem: Path, plain: Prompt) -> None:
    """The clips and the contact sheet of an entry of report.json. plain: the graph of its plain clip."""
    workflow = one_node_file("demo", **{name: run[name] for name in ("prompt", "seed", *PLANNED)})
    write_clip(pair.plain.frames, stem.with_name(f"{stem.name}_plain"), {"prompt": plain})
    write_clip(pair.final.frames, stem.with_name(f"{stem.name}_foresight"), {"workflow": workflow})
    rows = [
        (f"plain:\n{WORDS[run['judge_base']]}", pair.plain.frames),
        (f"with Foresight:\n{WORDS[run['judge_final']]}", pair.final.frames),
    ]
    text = f"{run['prompt']}   (seed {run['seed']})"
    contact_sheet(rows, [text], stem.with_name(f"{stem.name}_sheet.png"), below=pair.picture)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="http://127.0.0.1:8188", help="address of a running ComfyUI with this pack")
    parser.add_argument("--prompt", help="your own words instead of the fixed prompts")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first run; each further run has the next one")
    parser.add_argument("--count", type=int, help="number of runs (default 12; with --prompt 1)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for clips, sheets and report.json")
    parser.add_argument("--plan", choices=("race", "paper"), help="how Foresight goes about it (default race)")
    parser.add_argument("--budget", type=float, help="of the race: evaluations beyond a plain clip's, as a share")
    parser.add_argument("--self-refine", choices=("off", "later", "all"), help="of the race: which are self-refined")
    options = parser.parse_args(arguments)
    widgets = {name: value for name in PLANNED if (value := getattr(options, name)) is not None}
    count = options.count or (1 if options.prompt else 12)
    if options.prompt is None:
        pairs = [fixed_pair(index, options.seed) for index in range(count)]
    else:
        scene = parse_caption(options.prompt)
        if scene is None:
            print("This prompt names no coloured shape, which is all this model knows; its clips are not judged.")
        pairs = [(options.prompt, scene, options.seed + index) for index in range(count)]
    options.out.mkdir(parents=True, exist_ok=True)

    client = ComfyClient(options.server)
    nodes = client.object_info()
    text, _, seed = pairs[0]
    try:  # loads the models, so that no run's time holds it
        generate(client, demo_graph(nodes, text, seed + count, **widgets, steps=2))
    except PromptRejected as refused:
        parser.error(str(refused))

    print(HEADER)
    runs = []
    for index, (text, scene, seed) in enumerate(pairs):
        graph = demo_graph(nodes, text, seed, **widgets)
        pair = generate(client, graph)
        run = run_entry(text, seed, scene, pair)
        runs.append(run)
        print(line(index, run), flush=True)
        plain = {id: graph[id] for id in Graph(graph, nodes).upstream(PLAIN)}
        write_files(run, pair, options.out / f"{index + 1:02}", plain)

    summary = summarise(runs)
    sampled = {
        "steps": preset.STEPS, "cfg": preset.CFG, "shift": preset.SHIFT, "sampler": preset.SAMPLER,
        "scheduler": preset.SCHEDULER,
    }  # fmt: skip
    report = {"runs": runs, "summary": summary, "environment": environment(client) | sampled}
    (options.out / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
    print(total(summary))
    print(f"Clips, contact sheets and report.json are in {options.out.resolve()}")


if __name__ == "__main__":
    main()
