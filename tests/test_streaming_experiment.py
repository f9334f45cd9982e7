"""The evidence on streaming students: each as it was trained to be sampled, resumable, nothing told twice."""

import json

import pytest
import torch
from safetensors.torch import save_file

from foresight.demo.wan_dit import WanTransformer
from foresight.lab.experiments import streaming
from foresight.lab.training.streams import How


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A causal model, and a variant of two steps with a noisy history."""
    path = tmp_path_factory.mktemp("students")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = {k: v.contiguous() for k, v in WanTransformer(layers=1, ffn_dim=128).state_dict().items()}
    save_file(weights, path / "causal.safetensors")
    told = {"digits": "21", "last": "100.0", "history": "noisy", "level": "0.1"}
    save_file(weights, path / "self_forcing.safetensors")
    save_file(weights, path / "variant.safetensors", told)
    return path


def tell(folder, *more):
    streaming.main([str(folder), "--validation", "--prompts", "2", "--out", str(folder / "out"), *more])
    return json.loads((folder / "out" / "streaming_students.json").read_text())["tables"]


def test_students_are_told_by_their_own_schedule_and_kept_until_their_weights_change(folder, monkeypatch):
    tables = tell(folder, "--table", "students")
    forwards = {row["name"]: row["forwards"] for row in tables["students"]}
    # 2121212 steps and a pass for each of the first six; guidance counts once.
    assert forwards == {
        "causal, 8": 62, "causal, 4": 34, "self_forcing, 4": 34, "self_forcing, 4322222": 23, "variant, 21": 17,
    }  # fmt: skip
    assert [row["name"] for row in tables["students"] if "change" not in row] == ["self_forcing, 4"]
    assert all(0 <= row["right"]["value"] <= 1 for row in tables["students"])

    made = []

    def refuse(arm, *_):
        made.append(arm.student)
        raise InterruptedError

    monkeypatch.setattr(streaming, "run", refuse)
    assert tell(folder, "--table", "students") == tables and not made
    changed = folder / "causal.safetensors"
    changed.write_bytes(changed.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InterruptedError):
        tell(folder, "--table", "students")
    assert made == ["causal"]


def test_no_two_arms_are_the_same_and_each_is_compared_with_one_that_is_there():
    arms = streaming.arms({"variant": How("21")})
    keys = [arm.key for arm in arms]
    assert len(set(keys)) == len(keys)
    assert all(arm.against in keys for arm in arms if arm.against)
    assert [arm.how for arm in arms if arm.student == "variant"] == [How("21")]
    assert {arm.how.window for arm in arms if arm.table == "window"} == set(range(1, 8))
