"""What memory inspection takes beside the model: ``python -m foresight.lab.benchmarks.memory``.

ViCLIP-L/14 and the converters in their real sizes look at clips of real sizes, on torch's meta device: every tensor has
its shape and none its content, so no GPU is needed, and what was alive at once is counted exactly. Workspaces that a
GPU's libraries take for themselves are not. Writes docs/results/memory.json and the table of docs/method.md.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...evaluation.comfyui import ROOT, load_comfyui
from ...evaluation.results import environment
from ...l2r.model import L2R
from ...l2r.subpixel import SubpixelL2R
from ...scoring.detector import DetectorSettings
from ...scoring.inspector import Gate
from ...scoring.viclip import ViCLIP, ViCLIPConfig
from ...scoring.viclip_scorer import ViCLIPScorer
from ...trials.race import LOOK
from ..release.published import filled

RESULTS, PAGE = ROOT / "docs" / "results" / "memory.json", ROOT / "docs" / "method.md"
CLIPS = {"480p": (832, 480, 81), "720p": (1280, 720, 81), "1080p": (1920, 1088, 81)}  # width, height, frames
CHANNELS, STEPS = 16, 50  # of Wan's latents; steps of the schedule whose first look candidates are put aside at
META, SCORER = torch.device("meta"), ViCLIPConfig()
CONVERTERS: dict[str, Callable[[], torch.nn.Module]] = {
    "paper": lambda: L2R(CHANNELS), "sub-pixel": lambda: SubpixelL2R(CHANNELS, width=40),
}  # fmt: skip


class Peak(TorchDispatchMode):
    """bytes: the most that tensors which were made within it held at once."""

    def __init__(self):
        super().__init__()
        self.bytes = 0
        self._alive: dict[StorageWeakRef, int] = {}

    def _count(self, found: Any, made: bool) -> None:
        for each in tree_leaves(found):
            if isinstance(each, torch.Tensor):
                storage = each.untyped_storage()
                self._alive.setdefault(StorageWeakRef(storage), storage.nbytes() if made else 0)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._count((args, kwargs), made=False)
        result = func(*args, **(kwargs or {}))
        self._count(result, made=True)
        self._alive = {storage: size for storage, size in self._alive.items() if not storage.expired()}
        self.bytes = max(self.bytes, sum(self._alive.values()))
        return result


def weights(module: torch.nn.Module) -> int:
    return sum(each.nbytes for each in (*module.parameters(), *module.buffers()))


def watching(converter: torch.nn.Module, scorer: ViCLIPScorer) -> Gate:
    return Gate(converter, scorer, "a clip", DetectorSettings.video(), DetectorSettings.single_frame())


def on_meta(config: ViCLIPConfig, converter: Callable[[], torch.nn.Module]) -> Gate:
    with META:
        return watching(converter(), ViCLIPScorer(ViCLIP(config), lambda text: [0], META))


def look(gate: Gate, x0: torch.Tensor, text: torch.Tensor) -> int:
    """The most bytes alive at once in a look at [1, C, F, H, W], as Inspector.observe takes it."""
    with Peak() as peak:
        finite = torch.isfinite(x0).all()
        frames = gate.look(x0)
        kept = (finite, gate.scorer.score(frames, text), x0.clone())
        del kept
    return peak.bytes


def whole(gate: Gate, x0: torch.Tensor) -> int:
    """The same for a preview of every frame, as a verdict has one."""
    with Peak() as peak:
        gate.decode(x0)
    return peak.bytes


def put_aside(x0: torch.Tensor, evaluations: int) -> int:
    """Bytes on the CPU of a candidate that waits after that many evaluations: each one's x0 prediction, and its noise.
    Samplers with CFG++ keep two more parts of each evaluation."""
    return (evaluations + 1) * x0.nbytes


def told(clip: tuple[int, int, int], dtype: torch.dtype, config: ViCLIPConfig = SCORER) -> dict[str, int]:
    """Bytes of each part for a clip of that width, height and number of frames; dtype: of the sampler's latents."""
    width, height, frames = clip
    x0 = torch.empty(1, CHANNELS, (frames - 1) // 4 + 1, height // 8, width // 8, dtype=dtype, device=META)
    text = torch.empty(config.embed_dim, device=META)
    gates = {name: on_meta(config, make) for name, make in CONVERTERS.items()}
    return {
        **{f"look, {name} converter": look(gate, x0, text) for name, gate in gates.items()},
        **{f"preview of every frame, {name} converter": whole(gate, x0) for name, gate in gates.items()},
        "candidate put aside, CPU": put_aside(x0, math.ceil(LOOK * STEPS)),
    }


def standing(config: ViCLIPConfig = SCORER) -> dict[str, int]:
    """Bytes of the weights, whatever the clip."""
    gate = on_meta(config, CONVERTERS["paper"])
    scorer = weights(gate.scorer.model)
    return {
        "scorer, fp32": scorer, "scorer, fp16": scorer // 2,
        **{f"{name} converter": weights(make()) for name, make in CONVERTERS.items()},
    }  # fmt: skip


def size(amount: int) -> str:
    return f"{amount / 2**30:.2f} GiB" if amount >= 2**30 else f"{max(1, math.ceil(amount / 2**20))} MiB"


def table(found: dict[str, Any]) -> str:
    clips = found["clips"]
    rows = [["", *(f"{name}, {dtype}" for name in clips for dtype in clips[name])]]
    rows.append(["---"] * len(rows[0]))
    rows += [[part, *(size(each[part]) for clip in clips.values() for each in clip.values())]
             for part in clips["480p"]["fp32"]]  # fmt: skip
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n\nWeights: " + ", ".join(
        f"{name} {size(amount)}" for name, amount in found["weights"].items()) + ".\n"  # fmt: skip


def measured() -> dict[str, Any]:
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    clips = {name: {kind: told(clip, dtype) for kind, dtype in types.items()} for name, clip in CLIPS.items()}
    return {"weights": standing(), "clips": clips}


def main(arguments: list[str] | None = None) -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args(arguments)
    load_comfyui()
    found = {"environment": environment("python -m foresight.lab.benchmarks.memory"), **measured()}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), "memory", table(found)), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
