"""Demo Models: the demo family as ComfyUI's ordinary CLIP, MODEL and VAE."""

from types import SimpleNamespace

import comfy.sd
import comfy.utils
import torch
from comfy.sd1_clip import escape_important, token_weights, unescape_important
from comfy_api.latest import io

from ..demo import preset
from ..demo.text import TOKENS, encode_words, split_words
from .compat import searchable
from .folders import DEMO, WEIGHTS

WHOLE = next(iter(preset.MODELS))


class WordTokenizer:
    """Words with ComfyUI's prompt weights, `(word:1.3)`; a word is its own token."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        pass

    def tokenize_with_weights(self, text, return_word_ids=False, **_):
        parsed = token_weights(escape_important(text), 1.0)
        tokens = [(word, weight) for part, weight in parsed for word in split_words(unescape_important(part))]
        if return_word_ids:
            tokens = [(*token, index + 1) for index, token in enumerate(tokens)]
        return {"words": [tokens[:TOKENS]]}

    def untokenize(self, pairs):
        return [(pair, pair[0]) for pair in pairs]

    def state_dict(self):
        return {}


class WordEncoder(torch.nn.Module):
    """Has no weights: each word has its fixed vector. A prompt weight scales its word's vector, as core does relative
    to the empty prompt (which is all zeros here)."""

    dtypes = {torch.float32}

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__()

    def encode_token_weights(self, tokens):
        pairs = tokens["words"][0]
        features = encode_words([pair[0] for pair in pairs])
        weights = torch.tensor([pair[1] for pair in pairs]).reshape(-1, 1)
        cond = torch.zeros(1, TOKENS, features.shape[-1])
        cond[0, : len(pairs)] = features * weights
        return cond, None, {}

    def set_clip_options(self, options):
        pass

    def reset_clip_options(self):
        pass

    def load_sd(self, sd):
        return []


def word_clip() -> comfy.sd.CLIP:
    return comfy.sd.CLIP(SimpleNamespace(params={}, clip=WordEncoder, tokenizer=WordTokenizer))


class DemoTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return searchable(io.Schema(
            node_id="ForesightDemoTextEncoder",
            display_name="Demo Models",
            category="Foresight/demo",
            description="The models of the embedded demo family: they know coloured shapes that move, and nothing else. The text "
            "encoder has no weights and knows no language.",
            inputs=[
                io.Combo.Input(
                    "model", options=list(preset.MODELS), default=WHOLE, optional=True,
                    tooltip="whole clips: for any sampler, at shift 0.4 and CFG 2. streaming: students for Streaming Sampler, latent by "
                    "latent (chunk 1, window 7), at shift 5 and CFG 1. four steps: preset Self-Forcing. diagonal: preset Diagonal "
                    "Distillation, sink 0.",
                ),
            ],
            outputs=[
                io.Clip.Output(display_name="clip"),
                io.Model.Output(display_name="model"),
                io.Vae.Output(display_name="vae"),
            ],
        ), "example", "try")

    @classmethod
    def execute(cls, model=WHOLE):
        path = WEIGHTS / DEMO["diffusion_models"] / preset.MODELS[model]
        if not path.is_file():
            raise ValueError(
                f"Demo Models: model is '{model}', but {path.name} is not in {path.parent}. It comes with the pack: install "
                f"the pack again, or choose '{WHOLE}'."
            )
        # As core's loaders do it: in their lists these files stand only where there are no others.
        model = comfy.sd.load_diffusion_model(str(path))
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(WEIGHTS / DEMO["vae"] / preset.VAE)))
        return io.NodeOutput(word_clip(), model, vae)
