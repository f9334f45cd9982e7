"""The evidence on noise refiners: what each arm costs, that searches and races choose, and that it is kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from foresight.demo.stream import Stream, sample_stream
from foresight.demo.wan_dit import WanTransformer
from foresight.lab.experiments import refiner, refiner_page
from foresight.lab.experiments.refiner_page import CLAIMS
from foresight.lab.experiments.stream_search import searched
from foresight.lab.experiments.streaming_claims import HOLDS, NOT, OPEN, verdicts
from foresight.lab.training.refining import merged, with_lora
from foresight.lab.training.streams import schedule_of
from foresight.sampling.refiner_file import HEAD, MODEL, Described, RefinerSettings, marks


def network(text_dim=4096):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = WanTransformer(layers=1, ffn_dim=128, text_dim=text_dim).eval().requires_grad_(False)
        torch.nn.init.normal_(model.head.head.weight, std=0.1)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path, student = tmp_path_factory.mktemp("streams"), network()
    (path / "refiners").mkdir()
    save_file({k: v.contiguous() for k, v in student.state_dict().items()}, path / "self_forcing.safetensors")
    for name, what, scale in (("path_dmd", "path", 0.2), ("start_dmd", "start", 0.0), ("weights_dmd", "weights", 0.0)):
        made = merged(with_lora(student, 2, 1, silent=what != "weights"), student)
        if scale:
            made.get_submodule(HEAD).weight.copy_(scale * student.get_submodule(HEAD).weight)
        described = Described(name, MODEL, 1, 128, marks(student), "self_forcing", RefinerSettings())
        metadata = {"what": what, **(described.as_metadata() if what != "weights" else {})}
        state = {key: value.contiguous() for key, value in made.state_dict().items()}
        save_file(state, path / "refiners" / f"{name}.safetensors", metadata)
    save_file(state, path / "refiners" / "path_dmd_lora.safetensors", {"none": "of the recipe's"})
    curve = {"curve_columns": ["minutes", "step", "right", "reward", "change"],
             "curve": [[1, 2, 0.1, 0.2, 0.0], [2, 4, 0.3, 0.4, 0.1]],
             "what": "path", "mode": "dmd", "rank": 2, "told": "noise", "prediction": True, "seen": True, "refined": "",
             "strength": 1.0, "minutes": 2.0, "steps": 4}  # fmt: skip
    (path / "refiners" / "path_dmd.json").write_text(json.dumps(curve))
    return path


def shown(_, latents):
    """One colour for each frame, in the VAE's place."""
    frames = [0, *(1 + place // 4 for place in range(24))]
    return latents[:, :3, frames].mean((3, 4)).sigmoid().movedim(1, -1)[:, :, None, None].expand(-1, -1, 64, 64, -1)


def test_every_arm_is_told_with_its_forwards_and_kept(folder, monkeypatch):
    monkeypatch.setattr(refiner, "decode", shown)
    asked = [str(folder), "--validation", "--prompts", "2", "--seeds", "2", "--out", str(folder / "out")]
    asked += ["--only", "dmd", "--only", "best of 5 by chunk, latent"]
    refiner.main(asked)
    document = json.loads((folder / "out" / "refiner_streams.json").read_text())
    rows = {row["name"]: row for row in document["rows"]}
    assert {name: row["forwards"] for name, row in rows.items() if row["what"] != "race"} == {
        "none": 34, "best of 5 by chunk, latent reward": 146, "path_dmd": 55, "start_dmd": 41, "weights_dmd": 34,
    }  # fmt: skip
    for name in ("start_dmd", "weights_dmd"):  # they change nothing: the same clips
        assert rows[name]["right"]["change"] == {"value": 0.0, "low": 0.0, "high": 0.0}
        assert rows[name]["alike"]["change"]["value"] == 0 and rows[name]["noise_changed_by"] == 0
    assert rows["path_dmd"]["noise_changed_by"] > 0 and rows["path_dmd"]["latent reward"]["change"]["value"] != 0
    assert rows["best of 5 by chunk, latent reward"]["latent reward"]["change"]["value"] != 0
    assert rows["2 starts of 7 chunks, scorer"]["forwards"] == 68
    assert document["comparisons"].keys() == {
        "matching", "start, matching", "weights, matching", "path over start"}  # fmt: skip
    assert {claim["verdict"] for claim in document["claims"]} == {OPEN}  # of two prompts
    page = (folder / "out" / "refiner_streams.md").read_text()
    assert "| path_dmd | 2 x 2 | 55 |" in page
    assert "| path_dmd | 2 | 1.0 | 4 | 2.0 | 0.1 to 0.3 | 0.2 to 0.4 | 0.0 to 0.1 |" in page
    assert page.count(f"| {OPEN} |") == len(refiner_page.CLAIMS)

    monkeypatch.setattr(refiner, "run", lambda *_: pytest.fail("made again"))
    refiner.main(asked)


def test_what_is_not_begun_in_time_is_open(folder, monkeypatch, capsys):
    plain = {"right": [[True] * 3] * 2, "motion": [[0.1] * 3] * 2, "saturation": [[0.1] * 3] * 2,
             "latent reward": [[{"1": 0, "2": 0, "7": 0}] * 3] * 2, "scorer": [[{"1": 0, "2": 0, "7": 0}] * 3] * 2,
             "alike": [[0, 0.5, 0.5]] * 2, "change": 0, "forwards": 34, "seconds": 1.0}  # fmt: skip
    monkeypatch.setattr(refiner, "run", lambda *_: plain)
    refiner.main([str(folder), "--prompts", "2", "--minutes", "0", "--out", str(folder / "short")])
    document = json.loads((folder / "short" / "refiner_streams.json").read_text())
    assert {row["what"] for row in document["rows"]} == {"plain", "race"} and not document["comparisons"]
    assert "path_dmd: not begun" in capsys.readouterr().out


def test_a_race_begins_several_and_goes_on_with_the_best():
    def score(*values):
        return [{"1": value, "2": value, "7": value} for value in values]

    plain = {"forwards": 34, "right": [[False, True, False, False, False], [True, False, False, False, False]],
             "motion": [[0.0] * 5] * 2, "saturation": [[0.0] * 5] * 2,
             "latent reward": [score(0, 9, 1, 1, 1), score(0, 1, 9, 1, 1)],
             "scorer": [score(0, 1, 1, 1, 9), score(9, 0, 0, 0, 0)]}  # fmt: skip
    races = refiner.races(plain, 6)
    forwards = {name: forwards for name, (forwards, *_) in races.items()}
    assert forwards["5 starts of 1 chunks, latent reward"] == 34 + 4 * 5
    assert forwards["3 starts of 2 chunks, latent reward"] == 34 + 2 * 10
    assert forwards["5 starts of 7 chunks, scorer"] == 5 * 34
    _, own, change = races["5 starts of 1 chunks, latent reward"]
    assert own["right"].tolist() == [1, 0] and change["right"] == pytest.approx([0.8, -0.2])


@pytest.mark.parametrize("path", [False, True])
def test_a_search_keeps_the_best_of_each_item_and_costs_what_the_paper_says(path):
    model, schedule = network(24), schedule_of("4", 7)
    context, which = torch.randn(2, 1, 5, 24, generator=torch.Generator().manual_seed(1)), torch.zeros(2, 7).long()

    def run(count, verifier):
        generators = [torch.Generator().manual_seed(number) for number in range(5)]
        stream = Stream(model, context, which)
        draw = lambda number: torch.randn(2, 16, 1, 8, 8, generator=generators[number])  # noqa: E731
        return searched(stream, schedule, count, path, verifier, draw), stream.forwards

    generator = torch.Generator().manual_seed(0)
    plain = sample_stream(Stream(model, context, which), schedule,
                          lambda: torch.randn(2, 16, 1, 8, 8, generator=generator))  # fmt: skip
    alone, forwards = run(1, lambda clip, _: clip.mean((1, 2, 3, 4)))
    assert torch.equal(alone, plain) and forwards == 34
    bright, forwards = run(5, lambda clip, _: clip.mean((1, 2, 3, 4)))
    assert forwards == 34 + 112 and (bright.mean((1, 2, 3, 4)) > plain.mean((1, 2, 3, 4))).all()
    shares = torch.tensor([1.0, -1.0])
    apart, _ = run(5, lambda clip, _: clip.mean((1, 2, 3, 4)) * shares)
    assert torch.equal(apart[:1], bright[:1]) and apart[1].mean() < plain[1].mean()


def test_claims_are_decided_by_paired_differences_of_the_prompts_that_both_have():
    prompts = np.arange(204)
    better, worse = {"right": 0.2 + 0.1 * np.sin(prompts)}, {"right": -0.2 + 0.1 * np.sin(prompts)}
    changed = {
        "path_reward": better | {"motion": np.sin(prompts)}, "start_reward": better, "weights_reward": worse,
        "best of 5 by chunk, latent reward": {"right": better["right"][:51] + 0.05 * np.cos(prompts[:51])},
        "search over path of 5, latent reward": {"right": better["right"][:51]}, "none": {"right": 0 * prompts},
        "path_reward_rank8": better, "path_reward_rank32": {"right": better["right"] + 0.1},
        "path_reward_step1": {"right": better["right"][:20] - 1},
    }
    steps = dict.fromkeys(("path_reward", "path_reward_rank8", "path_reward_rank32"), 200)
    document = {"comparisons": refiner.comparisons(changed, steps)}
    assert "rank, reward" not in refiner.comparisons(changed, steps | {"path_reward_rank8": 100})
    made = {claim.name: row for claim, row in zip(CLAIMS, verdicts(document, CLAIMS), strict=True)}
    wanted = {
        "reward": HOLDS, "reward, weights": HOLDS, "hacked": HOLDS, "reward, start": OPEN, "path of 5": HOLDS,
        "rank, reward": NOT, "motion": OPEN, "best of 5": OPEN, "matching": OPEN, "step 1, reward": OPEN,
    }  # fmt: skip
    assert {name: made[name]["verdict"] for name in wanted} == wanted
    rows = [{"name": name, "what": "path", "forwards": 55, "right": cell | {"change": cell}}
            for name, cell in (("none", made["reward"]["here"]), ("path_reward", made["reward"]["here"]))]  # fmt: skip
    text = refiner_page.summary({"claims": [*made.values()], "rows": rows, "prompts": 204, "split": "test"})
    assert text.count("| holds |") == 4 and "path_reward 20.1 % (19.1 to 21.1) by 55 forwards, +" in text
    assert made["best of 5"]["here"]["prompts"] == 51 and made["matching"]["here"] is None


def test_every_claim_has_a_name_of_its_own_and_the_paper_beside_it():
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    told = " ".join(claim.paper for claim in CLAIMS)
    assert all(f"Table {number})" in told or f"Table {number};" in told for number in (1, 2, 3, 4, 6, 7))
