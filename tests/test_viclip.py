"""Parity with VBench's own modules (PyPI `vbench`, tests only), loading, and the messages for wrong files."""

import collections
import gzip
import html
import importlib.util
import math
import os
import random
import sys
import types
from dataclasses import replace
from pathlib import Path

import ftfy
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from foresight.scoring.preprocess import middle_frames, vbench_frames
from foresight.scoring.tokens import clean_text, clip_tokenizer, context_ids
from foresight.scoring.viclip import ViCLIP, ViCLIPConfig, load_viclip, save_viclip
from foresight.scoring.viclip_scorer import ViCLIPScorer

TINY = ViCLIPConfig(
    image_size=28, vision_width=64, vision_layers=2, vision_heads=4, text_width=32, text_layers=2, text_heads=2,
    embed_dim=24, name="tiny", tau=0.1, delta=0.03, scale=2.0, tau_from="a test",
)
PROMPTS = [
    "A red circle moves left over a white background.",
    "  two   Rings &amp; a \u201cblue\u201d square, don\u2019t stop: \ufb01ne caf\u00e9 \uff21\uff22 42  ",
    "a very long caption " * 9,  # cut, as VBench does; what is longer is read in pieces
    "一只橘猫在厨房的桌子上睡觉，阳光明媚。",
    "桜の木の下で猫が寝ている ｶﾞﾗｽ　１２",
    "고양이가 탁자 위에서 자고 있다",
    "a cat\u200b on\ufeff a \u200emat, cafe\u0301 👩‍🚀🎈 ½ Ⅳ ٣",
    "Ĳsselmeer ŉ Ǆ İstanbul \x1b[1mbold\x1b[0m 5 &lt; 6 &ldquo;quoted&rdquo; it's they'll",
]


@pytest.fixture(scope="module")
def tokenizer_folder():
    return Path(os.environ["COMFYUI_PATH"]) / "comfy" / "sd1_tokenizer"


@pytest.fixture(scope="module")
def tokenize(tokenizer_folder):
    return clip_tokenizer(tokenizer_folder)


@pytest.fixture(scope="module")
def vbench(tokenizer_folder, tmp_path_factory):
    """VBench's modules, without what the wheel imports but these parts do not use (video reading, timm)."""
    cache = tmp_path_factory.mktemp("vbench")
    (cache / "ViCLIP").mkdir()
    with gzip.open(cache / "ViCLIP" / "bpe_simple_vocab_16e6.txt.gz", "wb") as file:
        file.write((tokenizer_folder / "merges.txt").read_bytes())
    stubs = {
        "pkg_resources": {"packaging": importlib.import_module("packaging")},
        "timm": {}, "timm.models": {},
        "timm.models.layers": {"DropPath": None},
        "timm.models.registry": {"register_model": lambda function: function},
        "decord": {"VideoReader": None, "cpu": None},
        "vbench": {"__path__": [str(Path(importlib.util.find_spec("vbench").origin).parent)]},
    }
    importlib.import_module("packaging.version")
    with pytest.MonkeyPatch.context() as patch:
        for name, attributes in stubs.items():
            module = types.ModuleType(name)
            vars(module).update(attributes)
            patch.setitem(sys.modules, name, module)
        utils = importlib.import_module("vbench.utils")
        utils.CACHE_DIR = str(cache)
        load = {name: importlib.import_module(f"vbench.third_party.ViCLIP.{name}")
                for name in ("viclip", "viclip_vision", "viclip_text")}
    for name in [name for name in sys.modules if name.startswith("vbench.")]:
        del sys.modules[name]
    return types.SimpleNamespace(utils=utils, **load)


def upstream(vbench, config, seed=0):
    """VBench's ViCLIP with the sizes of `config` and random weights."""
    vision = vbench.viclip_vision.VisionTransformer(
        config.image_size, config.patch_size, config.vision_width, config.vision_layers, config.vision_heads,
        output_dim=config.embed_dim, num_frames=config.frames,
    )
    text = vbench.viclip_text.CLIP_TEXT(
        config.embed_dim, config.context, config.vocabulary, config.text_width, config.text_heads,
        config.text_layers, 0,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vbench.viclip, "clip_joint_l14", lambda **_: vision.eval())
        patch.setattr(vbench.viclip, "clip_text_l14", lambda **_: text.eval())
        model = vbench.viclip.ViCLIP(tokenizer=text._tokenizer, pretrain=None)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.05, generator=generator)
            if "ln_" in name and name.endswith("weight"):
                parameter.add_(1)
    return model


def video(frames, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(frames, 3, 9, 9, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bicubic").movedim(1, -1)
    return (smooth + 0.1 * torch.rand(frames, height, width, 3, generator=generator)).clamp(0, 1)


def agree(vbench, config, tokenize, path, frames):
    theirs = upstream(vbench, config)
    torch.save({"model": collections.OrderedDict(theirs.state_dict())}, path)
    model = load_viclip(path)
    scorer = ViCLIPScorer(model, tokenize)
    indices = vbench.utils.get_frame_indices(config.frames, len(frames), "middle")
    pixels = (frames[indices] * 255).round().byte().movedim(-1, 1)
    clip = vbench.utils.clip_transform(config.image_size)(pixels)
    feature = theirs.get_vid_features(clip[None])
    assert torch.allclose(scorer.encode_frames(frames), feature[0], atol=1e-5, rtol=0)
    for prompt in PROMPTS:
        text = theirs.get_text_features(prompt, None, {})
        assert torch.allclose(scorer.encode_text(prompt), text[0], atol=1e-5, rtol=0)
        assert scorer.score(frames, scorer.encode_text(prompt)) == pytest.approx(float(feature @ text.T), abs=1e-5)
    return scorer


# Upstream's files name no head counts (widths / 64), so neither does this one. The full size takes minutes and 6 GB:
# once a release, FORESIGHT_RELEASE=1.
SMALL = replace(TINY, vision_width=128, vision_heads=2, text_width=64, text_heads=1)


SIZES = [SMALL, ViCLIPConfig()] if "FORESIGHT_RELEASE" in os.environ else [SMALL]


@pytest.mark.parametrize("config", SIZES, ids=lambda config: config.name)
def test_scores_are_vbenchs(vbench, tokenize, tmp_path, config):
    scorer = agree(vbench, config, tokenize, tmp_path / "viclip.pth", video(13, 40, 56))
    assert (scorer.tau, scorer.delta, scorer.scale) == (0.22, 0.05, 1.0)  # nothing said: the paper's


@pytest.mark.parametrize("frames", [1, 5, 8, 13, 17])
@pytest.mark.parametrize("height,width", [(480, 832), (64, 64), (480, 720), (100, 61), (224, 300), (224, 224)])
def test_preprocessing_is_vbenchs_to_the_bit(vbench, frames, height, width):
    clip = video(frames, height, width)
    indices = vbench.utils.get_frame_indices(8, frames, "middle")
    pixels = (clip * 255).round().byte()
    theirs = vbench.utils.clip_transform(224)(pixels[indices].movedim(-1, 1))
    assert torch.equal(vbench_frames(clip), theirs)
    assert torch.equal(vbench_frames(pixels), theirs)


def test_frame_choice_is_vbenchs(vbench):
    for count in range(1, 200):
        for wanted in (1, 4, 8):
            assert middle_frames(count, wanted) == list(vbench.utils.get_frame_indices(wanted, count, "middle"))


def test_token_ids_are_vbenchs(vbench, tokenize):
    text = vbench.viclip_text.CLIP_TEXT(8, 32, 49408, 32, 1, 1, 0)
    chance = random.Random(0)
    pieces = "a cat's THE 12 3d , . !! -- 猫 ネコ ｶﾞ の 고양 кот ٣ 🎈 ﬁ Ａ １ “ ’ &amp; &#x41;".split(" ")
    pieces += [" ", "\n", "\u3000", "\u200b", "\u200d", "\ufeff"]
    made = ["".join(chance.choices(pieces, k=chance.randint(1, 14))) for _ in range(500)]
    for prompt in [*PROMPTS, *made, "a cat <|endoftext|> and <|startoftext|> a dog"]:
        assert context_ids(tokenize(clean_text(prompt)), 32) == text.tokenize(prompt, context_length=32)[0].tolist()


def test_text_is_cleaned_as_ftfy_cleans_it():
    """Every character of the basic plane that ftfy changes, within a word; but for text that was decoded wrongly."""
    settings = ftfy.TextFixerConfig(fix_encoding=False)
    for code in range(0x10000):
        text = f"a{chr(code)}b"
        theirs = html.unescape(html.unescape(ftfy.fix_text(text, settings)))
        assert clean_text(text) == " ".join(theirs.split()).lower(), hex(code)


@pytest.mark.parametrize("missing", [(), ("ftfy",), ("transformers", "regex", "ftfy", "sentencepiece")])
def test_token_ids_do_not_depend_on_what_else_is_installed(vbench, tokenizer_folder, monkeypatch, missing):
    text = "一只猫 ネコ a\u200bcat"
    theirs = vbench.viclip_text.CLIP_TEXT(8, 32, 49408, 32, 1, 1, 0).tokenize(text, context_length=32)[0].tolist()
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)  # its import fails
    path = Path(sys.modules[clean_text.__module__].__file__)
    module = importlib.util.module_from_spec(importlib.util.spec_from_file_location("alone", path))
    module.__spec__.loader.exec_module(module)
    assert module.context_ids(module.clip_tokenizer(tokenizer_folder)(module.clean_text(text)), 32) == theirs


@pytest.mark.parametrize("text", ["a \ud83d cat", "&#" + "9" * 5000 + ";", "\ud83d\ude00", "猫" * 1_000_000])
def test_any_text_has_token_ids(tokenize, text):
    assert len(context_ids(tokenize(clean_text(text)), 32)) == 32


@pytest.mark.parametrize("shape", [(8, 3, 64, 64), (64, 64, 3), (0, 64, 64, 3), (1, 64, 64, 4)])
def test_frames_of_another_shape_are_named(shape):
    with pytest.raises(ValueError, match="frames .F, H, W, 3."):
        vbench_frames(torch.zeros(shape))


def random_model(config=TINY):
    model = ViCLIP(config)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.1, generator=generator)
    return model.eval()


def test_sizes_of_the_full_model():
    with torch.device("meta"):
        model = ViCLIP(ViCLIPConfig())
    assert sum(p.numel() for p in model.parameters()) == 427_590_145 - 1  # without the unused training temperature
    assert len(model.state_dict()) == 447 - 1


def test_saved_model_keeps_sizes_name_and_thresholds(tmp_path, tokenize):
    model = random_model()
    save_viclip(model, tmp_path / "tiny.safetensors", torch.float32)
    loaded = load_viclip(tmp_path / "tiny.safetensors")
    assert loaded.config == TINY
    assert "vision_encoder.transformer.resblocks.0.attn.in_proj_weight" in load_file(tmp_path / "tiny.safetensors")
    frames = video(5, 30, 30)
    scores = [float((s := ViCLIPScorer(m, tokenize)).score(frames, s.encode_text("a ring"))) for m in (model, loaded)]
    assert scores[0] == scores[1]
    half = load_viclip(tmp_path / "tiny.safetensors", dtype=torch.float16)
    assert half.dtype == torch.float16
    scorer = ViCLIPScorer(half, tokenize)
    assert float(scorer.score(frames, scorer.encode_text("a ring"))) == pytest.approx(scores[0], abs=0.05)


def test_text_features_are_cached_by_prompt():
    calls = []
    scorer = ViCLIPScorer(random_model(), lambda text: calls.append(text) or [49406, 320, 49407])
    first = scorer.encode_text("A  ring")
    assert scorer.encode_text("a ring") is first
    assert calls == ["a ring"]
    assert first.norm() == pytest.approx(1)


def test_an_empty_prompt_is_refused():
    scorer = ViCLIPScorer(random_model(), lambda text: [49406, 49407])
    with pytest.raises(ValueError, match="tiny: the prompt has no words"):
        scorer.encode_text(" \n")


def test_nan_frames_score_nan_and_raise_nothing():
    scorer = ViCLIPScorer(random_model(), lambda text: [49406, 320, 49407])
    assert math.isnan(scorer.score(torch.full((3, 8, 8, 3), torch.nan), scorer.encode_text("x")))


def test_loads_under_comfyuis_casting_layers(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [os.environ["COMFYUI_PATH"], *sys.path])
    monkeypatch.setattr(sys, "argv", ["comfyui", "--cpu"])
    operations = importlib.import_module("comfy.ops").manual_cast
    save_viclip(random_model(), tmp_path / "tiny.safetensors")
    plain, cast = (load_viclip(tmp_path / "tiny.safetensors", layers) for layers in (torch.nn, operations))
    frames, ids = torch.randn(1, 8, 3, 28, 28), torch.tensor([context_ids([49406, 320, 49407], 32)])
    with torch.no_grad():
        assert torch.equal(plain.encode_vision(frames), cast.encode_vision(frames))
        assert torch.equal(plain.encode_text(ids), cast.encode_text(ids))


class EasyDict(dict):
    """Stands for the pickled class inside the 4.14 GB training checkpoint."""


def tensors():
    return {name.replace(".in_proj.", ".in_proj_"): value for name, value in random_model().state_dict().items()}


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("train.pth", lambda p: torch.save({"model": tensors(), "config": EasyDict()}, p), "training checkpoint"),
        ("clip.safetensors", lambda p: save_file({"visual.conv1.weight": torch.zeros(8, 3, 4, 4)}, p), "still images"),
        ("vae.safetensors", lambda p: save_file({"decoder.w": torch.zeros(1)}, p), "first weight is 'decoder.w'"),
        ("empty.pth", lambda p: torch.save({}, p), "is empty"),
        ("list.pth", lambda p: torch.save([torch.zeros(1)], p), "no plain set of weights"),
        ("text.pth", lambda p: p.write_text("version https://git-lfs"), "damaged, cut short"),
        ("cut.safetensors", lambda p: (save_file(tensors(), p), p.write_bytes(p.read_bytes()[:1000])), "no whole"),
        ("cut.pth", lambda p: (torch.save(tensors(), p), p.write_bytes(p.read_bytes()[:1000])), "damaged, cut short"),
        ("part.safetensors", lambda p: save_file({k: v for k, v in tensors().items() if "ln_post" not in k}, p),
         "incomplete or altered ViCLIP.*ln_post"),
        ("shape.safetensors", lambda p: save_file({**tensors(), "text_encoder.ln_final.bias": torch.zeros(5)}, p),
         "incomplete or altered ViCLIP.*ln_final"),
    ],
)
def test_a_wrong_file_is_named_and_so_is_the_right_one(tmp_path, name, write, words):
    write(tmp_path / name)
    with pytest.raises(ValueError, match="(?s)" + words) as caught:
        load_viclip(tmp_path / name)
    for part in (name, "ViClip-InternVid-10M-FLT.pth", "models/foresight"):
        assert part in str(caught.value)


@pytest.mark.parametrize("said", ["{", '{"name": "x"}', '{"vision_heads": 7, "text_heads": 2, "tau": 0, "delta": 0, '
                                  '"scale": 1, "name": "x"}', "[1]"])
def test_a_damaged_description_is_named(tmp_path, said):
    save_file(tensors(), tmp_path / "odd.safetensors", {"foresight.viclip": said})
    with pytest.raises(ValueError, match="odd.safetensors: its description"):
        load_viclip(tmp_path / "odd.safetensors")


def test_other_layouts_of_pth_load(tmp_path):
    whole = {**tensors(), "temp": torch.ones(())}
    for number, content in enumerate([tensors(), {"module": tensors()}, {"model": whole}]):
        torch.save(content, tmp_path / f"{number}.pth")
        assert load_viclip(tmp_path / f"{number}.pth").config.embed_dim == TINY.embed_dim
