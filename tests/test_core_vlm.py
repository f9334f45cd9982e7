"""The core back end with ComfyUI's own Qwen3-VL at a tiny size: core's tokenizer, image path, generation and memory."""

from __future__ import annotations

import comfy.model_management
import comfy.sd
import pytest
import torch
from tiny_wan import Conditioned, ScriptedScorer, gate, inputs, model

from foresight.nodes.back_ends import ABLATION, CORE, make_reworder
from foresight.nodes.compat import generates
from foresight.nodes.core_vlm import CoreReworder
from foresight.nodes.demo import word_clip
from foresight.refiner.base import RewordingError, RewordingRequest
from foresight.sampling.hierarchy import run_hierarchy
from foresight.trials.report import run_report

NEWER = generates(comfy.sd.CLIP)
newer_only = pytest.mark.skipif(not NEWER, reason="CLIP.generate came after ComfyUI 0.3.75")
ANSWER = '{"refined_prompt":"a clearly visible red circle moves left"}'
REQUEST = RewordingRequest("a red circle moves left", "blur", torch.rand(5, 32, 32, 3), 0.1)
TINY = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1,
        "num_key_value_heads": 1}  # fmt: skip
END = 151645


@pytest.fixture
def vlm(monkeypatch):
    """A CLIP whose random model is led through ANSWER: its layers add nothing, and the head of the token after each
    token is that token's embedding. Everything else is core's."""
    from comfy.text_encoders import qwen3vl

    vision = {"hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "depth": 1, "deepstack_visual_indexes": [0]}
    monkeypatch.setitem(qwen3vl.QWEN3VL_VISION, "qwen3vl_8b", vision)
    target = type("Target", (), {"params": {}, "clip": qwen3vl.te(), "tokenizer": qwen3vl.tokenizer()})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = comfy.sd.CLIP(target, model_options={"qwen3vl_8b_model_config": TINY, "dtype": torch.float32})
        network = clip.cond_stage_model.qwen3vl_8b.transformer
        for name, parameter in network.named_parameters():
            torch.nn.init.normal_(parameter, std=1.0 if "embed" in name else 0.02)
    for layer in network.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    torch.nn.init.ones_(network.model.norm.weight)
    head, embeddings = network.model.lm_head.weight, network.model.embed_tokens.weight
    torch.nn.init.zeros_(head)
    tokens = [row[0] for row in clip.tokenize("x")["qwen3vl_8b"][0]][-1:]  # what a question ends with
    tokens += [row[0] for row in clip.tokenize(ANSWER, skip_template=True)["qwen3vl_8b"][0]] + [END]
    assert len(set(tokens)) == len(tokens), "a token that comes twice would have two followers"
    with torch.no_grad():
        for token, following in zip(tokens, tokens[1:], strict=False):
            head[following] += embeddings[token]
    return clip


@newer_only
def test_a_refinement_by_cores_own_generation(vlm, monkeypatch):
    asked = []
    tokenize = vlm.tokenize
    monkeypatch.setattr(vlm, "tokenize", lambda *given, **named: asked.append(tokenize(*given, **named)) or asked[-1])
    found = CoreReworder(vlm, None).reword(REQUEST)
    assert found.prompt == "a clearly visible red circle moves left" and found.negative == "blur"
    assert found.usage["completion_tokens"] == len(vlm.tokenize(ANSWER, skip_template=True)["qwen3vl_8b"][0]) + 1
    (row,) = asked[0]["qwen3vl_8b"]
    (picture,) = [token["data"] for token, *_ in row if isinstance(token, dict)]
    assert picture.shape == (1, 68, 68, 3), "four frames of 32 pixels as one sheet"
    assert not any(loaded.model is vlm.patcher for loaded in comfy.model_management.current_loaded_models)


@newer_only
@pytest.mark.parametrize("led", [True, False], ids=["an answer", "babble"])
def test_a_rejected_run_is_finished_with_or_without_an_answer(vlm, led):
    if not led:
        torch.nn.init.normal_(vlm.cond_stage_model.qwen3vl_8b.transformer.model.lm_head.weight)
    patcher = model()
    result = run_hierarchy(
        inputs(patcher, steps=8), gate(*[0.1] * 6, 0.3, prompt=REQUEST.prompt), Conditioned(patcher), negative="",
        reworder=CoreReworder(vlm, lambda a, b: 1.0), injection=None,
    )  # fmt: skip
    report = run_report(result.verdict)
    assert torch.isfinite(result.latent["samples"]).all()
    assert report["refined_prompt"] == ("a clearly visible red circle moves left" if led else None)
    assert led or "holds no refined prompt" in report["notes"][-1]


@newer_only
def test_an_encoder_that_generates_nothing_is_named():
    with pytest.raises(RewordingError, match="at vlm cannot generate text"):
        CoreReworder(word_clip(), None).reword(REQUEST)


@pytest.mark.skipif(NEWER, reason="this ComfyUI has CLIP.generate")
def test_an_older_core_says_what_it_needs():
    with pytest.raises(ValueError, match="needs a newer ComfyUI"):
        make_reworder(CORE, ScriptedScorer(0.1), vlm=word_clip())


def test_a_missing_model_is_said_before_anything_is_sampled():
    with pytest.raises(ValueError, match="vlm is not connected"):
        make_reworder(CORE, ScriptedScorer(0.1))
    assert make_reworder(ABLATION, ScriptedScorer(0.1)).name == "ablation"
