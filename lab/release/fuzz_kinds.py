"""What `fuzz` breaks: each kind of file of ours with how the pack reads and uses it, and each request to the panel."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from ...evaluation.store import Store
from ...l2r.checkpoint import load_fit, load_l2r, save_l2r
from ...l2r.fit import AffineFit
from ...l2r.model import L2R
from ...panel.routes import BASE
from ...refiner.profiles import load_profiles
from ...sampling.refiner_file import HEAD, LORA, MARKS, Described, RefinerSettings, describe, lora_names, set_name
from ...scoring.detector import Detector
from ...scoring.latent_reward import RewardConfig, RewardModel, load_reward, save_reward
from ...scoring.preset import load_preset
from ...scoring.race_preset import load_race_preset
from ...scoring.viclip import ViCLIP, ViCLIPConfig, load_viclip, save_viclip
from .hostile import broken_json, broken_weights, scrambled

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class FileKind:
    """name: of a file of it. write: a good one. broken: another from its bytes. read: as the pack does, and use it."""

    name: str
    write: Callable[[Path], object]
    broken: Callable[[bytes, random.Random], bytes]
    read: Callable[[Path], object]


def _converter(path: Path) -> None:
    fit = AffineFit(4, 2)
    fit.add(torch.rand(1, 4, 2, 3, 3), torch.rand(1, 2, 6, 6, 3))
    save_l2r(fit.solve(), path, {"name": "mine", "latent_format": "Wan21", "psnr": 20.0, "learned": 1}, fit)


def _preview(path: Path) -> None:
    converter, fit = load_l2r(path), load_fit(path)
    converter(torch.zeros(1, converter.channels, 1, 2, 2))
    if fit:
        fit.solve()


def _reward(path: Path) -> None:
    rows = [{"step": step, "latent_reward": 0.9} for step in (10, 20)]
    config = RewardConfig(channels=4, frames=2, side=4, width=16, heads=2, layers=1, text_dim=8)
    save_reward(RewardModel(config), path, {"name": "mine", "scorer": "s", "steps": 50, "accuracy": rows})


def _judged(path: Path) -> None:
    model = load_reward(path)
    model(torch.zeros(1, model.config.channels, 1, 4, 4), torch.zeros(1), torch.zeros(1, model.config.text_dim))


def _viclip() -> ViCLIP:
    return ViCLIP(ViCLIPConfig(28, 14, 2, 32, 1, 2, 16, 1, 2, 8, 100, 8, "mine"))


def _scored(path: Path) -> None:
    model = load_viclip(path)
    size = model.config.image_size
    model.encode_vision(torch.zeros(1, model.config.frames, 3, size, size))
    model.encode_text(torch.zeros(1, model.config.context, dtype=torch.long))


def _detected(path: Path) -> None:
    detector = Detector(load_preset(path).video, 50)
    for step in range(1, 51):
        detector.observe(step, 0.2)


def _raced(path: Path) -> None:
    preset = load_race_preset(path)
    for mode in preset.races:
        preset.rules(mode, 10.0)


def _asked(path: Path) -> None:
    for profile in load_profiles(path).values():
        profile.trusted(), profile.price(10, 10)
        if profile.key_file:
            profile.key()


def _profiles(path: Path) -> None:
    key = path.with_name("key")
    key.write_text("k")
    entry = {"base_url": "http://127.0.0.1:8080/v1", "model": "m", "key_file": str(key), "ca_file": "", "attempts": 2}
    path.write_text(json.dumps({"profiles": {"a": entry, "b": entry | {"deadline_s": 5.5, "tiled": True}}}))


def _evidence(path: Path) -> None:
    row = {"suite": "demo", "prompt_index": 0, "prompt": "p", "method": "base", "settings": "a", "right": True,
           "trace": [[1, 0.1, None]], "measures": {"a": 1}, "report": {}, "notes": [], "clip": b"webp"}  # fmt: skip
    with Store(path, write=True) as store:
        store.add([row | {"seed": seed} for seed in range(20)], store.begin("command", "machine", {}, {}))


def _reported(path: Path) -> None:
    with Store(path) as store:
        store.rows(clips=True), store.metas(), store.fingerprints()


def _refiner(path: Path) -> None:
    described = Described("mine", LORA, 1, 8, (0.5,) * MARKS, "my model", RefinerSettings(steps=(1, 2)))
    names = [*lora_names("blocks.0.ffn.0"), *(set_name(f"{HEAD}.{part}") for part in ("weight", "bias"))]
    save_file({name: torch.zeros(2, 2) for name in names}, path, described.as_metadata())


def _copied(path: str) -> Callable[[Path], object]:
    return lambda to: to.write_bytes((ROOT / "weights" / "demo" / path).read_bytes())


def _paper_layout(path: Path) -> None:
    save_l2r(L2R(4, 2, {"name": "mine", "latent_format": "Wan21", "psnr": 20.0}), path)


FILES = {
    "converter (sub-pixel, with its sums)": FileKind("a.safetensors", _converter, broken_weights, _preview),
    "converter (the paper's layout)": FileKind("a.safetensors", _paper_layout, broken_weights, _preview),
    "latent reward": FileKind("a.safetensors", _reward, broken_weights, _judged),
    "scorer (safetensors)": FileKind("a.safetensors", lambda p: save_viclip(_viclip(), p), broken_weights, _scored),
    "scorer (pth)": FileKind(
        "a.pth", lambda p: torch.save(
            {k.replace(".in_proj.", ".in_proj_"): v for k, v in _viclip().state_dict().items()}, p
        ), scrambled, _scored,
    ),
    "noise refiner": FileKind("a.safetensors", _refiner, broken_weights, describe),
    "detector preset": FileKind(
        "a.json", _copied("presets/foresight_demo_conformal.json"), broken_json, _detected
    ),
    "race preset": FileKind("a.json", _copied("races/foresight_demo_race.json"), broken_json, _raced),
    "endpoint profiles": FileKind("a.json", _profiles, broken_json, _asked),
    "evidence store": FileKind("a.sqlite", _evidence, scrambled, _reported),
}  # fmt: skip


Sent = tuple[str, str, dict[str, str], bytes]  # method, path, headers, body
Request = Callable[[str, random.Random], Sent]  # from a run's id


def _part(chance: random.Random, *usual: str) -> str:
    """A part of a path or query: mostly a usual one."""
    odd = ("-1", "9" * 30, "%00", "%ff", "..", "0x1", "1e3", "\u0661", "%C2%B2", "x" * 3000, "", "{}", "a/b", "?")
    return chance.choice(usual if chance.random() < 0.6 else odd)


def _decision(id: str, chance: random.Random) -> Sent:
    good = json.dumps({"decision": chance.choice(["accept", "reject", "stop", "choose"]), "trials": [0, 1]}).encode()
    odd = ("application/json; charset=none", "text/plain", "application/x-www-form-urlencoded", "")
    kind = "application/json" if chance.random() < 0.7 else chance.choice(odd)
    return "POST", f"{BASE}/{_part(chance, id)}/decision", {"Content-Type": kind}, broken_json(good, chance)


def _picture(id: str, chance: random.Random) -> Sent:
    path = f"trials/{_part(chance, '0')}/steps/{_part(chance, '9')}.jpg?frame={_part(chance, '0', '2')}"
    return "GET", f"{BASE}/{id}/{path}", {}, b""


def _address(id: str, chance: random.Random) -> Sent:
    host = chance.choice(["localhost", "127.0.0.1", "[::1]", "[::1", "]", "", "a" * 300, "null", "%", "@", "\xe4"])
    where = host + chance.choice(["", ":"]) + _part(chance, "80", "8188")
    scheme = chance.choice(["http://", "https:", "//", "", "file:///", "http://a:b@"])
    headers = {chance.choice(["Origin", "Host", "If-None-Match", "Referer"]): (scheme + where).replace("\n", "")}
    return "GET", f"{BASE}/{id}", headers, b""


ROUTES: dict[str, Request] = {
    "GET runs": lambda id, chance: ("GET", f"{BASE}?{_part(chance, 'a=1')}", {}, b""),
    "GET runs/{id}": lambda id, chance: ("GET", f"{BASE}/{_part(chance, id)}", {}, b""),
    "GET runs/{id}/report": lambda id, chance: ("GET", f"{BASE}/{_part(chance, id)}/report", {}, b""),
    "GET a picture": _picture,
    "POST a decision": _decision,
    "Origin, Host and other headers": _address,
}  # fmt: skip
