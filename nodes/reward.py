"""Latent Reward: what a search asks of half-sampled clips, read off their latents by a trained network."""

from comfy_api.latest import io

from ..scoring.inspector import check_prompt
from ..scoring.latent_reward import HEADS, LatentReward, load_reward
from . import types
from .compat import advanced, searchable
from .folders import REWARD, check_file, files, path_of, state
from .graph import Checked
from .loaders import managed

REWARD_HELP = (
    "A reward that was trained for this very model, in models/foresight_reward (foresight_demo_reward.safetensors comes with "
    "the pack and only knows the demo's model). One whose measured accuracy is below the bar is refused."
)


class LatentRewardNode(Checked):
    @classmethod
    def define_schema(cls):
        def weight(name: str, what: str):
            return io.Float.Input(
                name, default=1.0, min=0.0, max=10.0, step=0.05, round=0.001,
                tooltip=f"Weight of {what} in the reward; 1 for all three is LatSearch's sum.",
            )

        return searchable(io.Schema(
            node_id="ForesightLatentReward",
            display_name="Latent Reward",
            category="Foresight/enhancers",
            description="Foretells visual quality, motion quality and text alignment of a half-sampled clip from its latent, "
            "without decoding anything: the reward of a Latent Search.",
            inputs=[
                io.Combo.Input("weights", options=files(REWARD), tooltip=REWARD_HELP),
                types.Scorer.Input("scorer", tooltip="The scorer whose text features the reward was trained with."),
                io.String.Input("prompt", multiline=True, tooltip="What candidates are compared on: the clip's prompt."),
                *advanced(
                    weight("visual_quality", "clear pictures"),
                    weight("motion_quality", "coherent motion"),
                    weight("text_alignment", "fitting the prompt"),
                ),
            ],
            outputs=[types.Reward.Output(display_name="reward")],
        ), "score", "reward model")  # fmt: skip

    @classmethod
    def check(cls, known, graph, id):
        check_prompt(str(known.get("prompt", "linked")))
        check_file(REWARD, known.get("weights"))

    @classmethod
    def fingerprint_inputs(cls, weights=None, **_):
        return state(REWARD, weights)

    @classmethod
    def execute(cls, weights, scorer, prompt, **shares):
        model = managed(load_reward(path_of(REWARD, weights)))
        return io.NodeOutput(LatentReward(model, scorer, prompt, tuple(shares.get(head, 1.0) for head in HEADS)))
