"""What inspection costs beside a denoising step, at full size: ``python -m foresight.lab.benchmarks.inspection``.

Wan 2.1 1.3B, ViCLIP-L/14 and L2R in their real sizes with random weights (time does not depend on what they hold),
through ComfyUI's own loader and guider. Needs a GPU; --tiny runs the same on a CPU, to try the script. Writes
docs/results/inspection.json and prints it beside the paper's figures. The overhead of a passing run is that of the
whole window, the most it can cost; the paper's is at its mean stop, step 10.33.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...evaluation.comfyui import load_comfyui
from ...evaluation.results import environment
from ...l2r.model import L2R
from ...scoring.detector import DetectorSettings
from ...scoring.inspector import Gate
from ...scoring.tokens import END, START
from ...scoring.viclip import ViCLIP, ViCLIPConfig
from ...scoring.viclip_scorer import ViCLIPScorer

ROOT = Path(__file__).resolve().parents[2]
# Table S3 of the paper, Wan2.1-1.3B at 480p with 49 frames: seconds, and the share of a passing run of 50 steps.
PAPER = {"step": 1.460, "l2r": 0.0197, "score": 0.0195, "inspection": 0.0392, "overhead": 0.0055}
CLIPS = ((832, 480, 49), (832, 480, 81), (1280, 720, 81))  # width, height, frames
STEPS = 50


def seconds(run: Callable[[], Any], repeat: int) -> float:
    """Median time of a call, after one that warms up; waits for the GPU."""
    times = []
    for _ in range(repeat + 1):
        begin = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def wan(tiny: bool):
    """A ModelPatcher of Wan 2.1 T2V 1.3B (wan/configs/wan_t2v_1_3B.py) with random weights, as UNETLoader makes it."""
    import comfy.ldm.wan.model
    import comfy.ops
    import comfy.sd

    sizes = {"dim": 128, "ffn_dim": 128, "num_heads": 1, "num_layers": 2} if tiny else {
        "dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}  # fmt: skip
    network = comfy.ldm.wan.model.WanModel(
        model_type="t2v", **sizes, dtype=torch.float16, operations=comfy.ops.disable_weight_init
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return comfy.sd.load_diffusion_model_state_dict(network.state_dict())


def gate(tiny: bool, device: torch.device) -> Gate:
    """Every score is above tau, so that nothing is stopped and the whole window is paid for."""
    config = ViCLIPConfig(
        image_size=28, vision_width=64, vision_layers=1, vision_heads=1, text_width=64, text_layers=1, text_heads=1
    ) if tiny else ViCLIPConfig()  # fmt: skip
    clip = ViCLIP(config)
    for parameter in clip.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    scorer = ViCLIPScorer(clip, lambda text: [START, *range(320, 330), END], device)
    whole_window = {"tau": -1.0, "accept_margin": 2.0, "stable_range": 1e-9}
    return Gate(
        L2R().to(device), scorer, "a random clip", video=DetectorSettings.video(**whole_window),
        single_frame=DetectorSettings.single_frame(),
    )  # fmt: skip


def measure(patcher, watched: Gate, clip: tuple[int, int, int], repeat: int, whole_runs: bool) -> dict[str, Any]:
    """Seconds of each part for a clip of that width, height and number of frames."""
    import comfy.samplers

    from ...sampling.inputs import Inputs
    from ...sampling.noise import FixedNoise
    from ...sampling.run import monitored_sample

    width, height, frames = clip
    noise = torch.randn(1, 16, (frames - 1) // 4 + 1, height // 8, width // 8)
    guider = comfy.samplers.CFGGuider(patcher)
    words = [[torch.randn(1, 512, 4096), {}]]
    guider.set_conds(words, words)
    guider.set_cfg(5.0)

    def run(steps: int, gate: Gate | None = None) -> Any:
        sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", steps)
        sampler, latent = comfy.samplers.sampler_object("euler"), {"samples": torch.zeros_like(noise)}
        return monitored_sample(Inputs(FixedNoise(noise, 0), guider, sampler, sigmas, latent), gate)

    x0 = noise.to(watched.scorer.device)
    text, preview = watched.scorer.encode_text(watched.prompt), watched.l2r(x0)[0]
    # The difference of two runs: what a run costs besides its steps (loading, text) is in both.
    step = (seconds(lambda: run(6), repeat) - seconds(lambda: run(2), repeat)) / 4
    result: dict[str, Any] = {
        "clip": f"{width}x{height}, {frames} frames", "step": step, "l2r": seconds(lambda: watched.l2r(x0), repeat),
        "score": seconds(lambda: watched.scorer.score(preview, text), repeat),
        "inspection": seconds(lambda: watched.inspector(STEPS).observe(1, 1.0, x0), repeat),
    }  # fmt: skip
    result["overhead"] = result["inspection"] * watched.video.window(STEPS)[1] / (STEPS * step)
    if whole_runs:
        result["overhead_of_whole_runs"] = seconds(lambda: run(STEPS, watched), 1) / seconds(lambda: run(STEPS), 1) - 1
    return result


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="tiny models and clips, to try the script without a GPU")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--whole-runs", action="store_true", help="time whole runs of 50 steps too (smallest clip)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "inspection.json")
    options = parser.parse_args(arguments)
    if not (options.tiny or torch.cuda.is_available()):
        raise SystemExit("the real sizes need a GPU, and torch sees none: use --tiny to try the script")
    load_comfyui()
    import comfy.model_management

    torch.manual_seed(0)
    patcher, watched = wan(options.tiny), gate(options.tiny, comfy.model_management.get_torch_device())
    clips = ((64, 64, 9),) if options.tiny else CLIPS
    rows = [measure(patcher, watched, clip, options.repeat, options.whole_runs and clip == clips[0]) for clip in clips]
    content = {
        "environment": environment("python -m foresight.lab.benchmarks.inspection"), "tiny": options.tiny, "seed": 0,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "paper (Wan2.1-1.3B, 480p, 49 frames)": PAPER, "measured": rows,
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for row in ({"clip": "paper: 480p, 49 frames", **PAPER}, *rows):
        parts = ", ".join(f"{name} {1000 * row[name]:.1f} ms" for name in ("step", "l2r", "score", "inspection"))
        print(f"{row['clip']}: {parts}; a passing run of {STEPS} steps costs {row['overhead']:+.2%}")


if __name__ == "__main__":
    main()
