"""How is a prompt scored that is longer than the scorer reads? Captions of the demo world in prompts of 80 words.

    python -m foresight.lab.experiments.long_prompts --prompts 40 --seeds 4

Clips are made of the short captions, because the demo's video model reads 32 words. Their scores are then taken
against longer texts that say the same, in every way of combining pieces, and held against the judge's verdicts. The way
is chosen on validation prompts and told on test prompts. Clips' features are kept in a database, so that another way
costs seconds. Writes long_prompts.json and long_prompts.md.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ...demo.captions import caption
from ...demo.world import Scene
from ...evaluation import statistics
from ...evaluation.bench import Bench, Method, Row
from ...evaluation.comfyui import load_comfyui
from ...evaluation.demo_family import DemoFamily, fingerprint
from ...evaluation.fill import cells
from ...evaluation.results import number
from ...evaluation.suites import Item, load_suite
from ...evaluation.workers import Spec, Worker
from ...scoring.pieces import SHARPNESS, parted
from ...scoring.tokens import clean_text, context_ids
from .common import experiment, made_by, parser, write

FIRST_SEED = 7000
PLAIN = "plain"
LOOK = 10  # of 50 steps: where the demo's clips can first be told apart
SUITES = {"validation": "demo_validation", "test": "demo"}
WORDS = 80
SHORT, CUT = "the short caption", "cut at 32 tokens"
SHARPNESSES = (0.0, 5.0, 10.0, 20.0, 40.0, math.inf)
FILM = (
    "Cinematic film still, soft light.", "Shot on 35mm film with a shallow depth of field.",
    "Slow push in of the camera.", "Warm tones and gentle contrast fill the frame.",
    "High detail, sharp focus, 4k resolution.", "The mood is calm and quiet.",
    "Slow and smooth movement throughout the whole shot.", "The camera holds steady at eye level, without any cuts.",
    "Natural colours with fine grain.", "The lighting is even, with no harsh shadows anywhere.",
    "Medium shot, static camera.", "Masterpiece, best quality, highly detailed.",
    "The composition is clean and balanced.", "Shallow focus, soft bokeh.",
    "Everything stays in focus from the beginning to the end.", "The atmosphere is peaceful and dreamlike.",
    "The picture has the look of a modern animated film.", "Rendered with soft ambient light and crisp edges.",
)  # fmt: skip


def load(name: str, _: int) -> Method:
    return Method(name, sampled, in_process=True)


def sampled(bench: Bench, seed: int) -> Row:
    """A plain clip's row; its measures hold the scorer's features of the clip and of its preview at LOOK."""
    from ...sampling.run import monitored_sample
    from ...trials.report import run_report

    family = bench.backend.family
    result = monitored_sample(family.inputs(bench.item.prompt, seed), keep_steps=True)
    row = bench.sampled(seed, PLAIN, result.latent, run_report(result.verdict))
    x0 = family.model.model.process_latent_in(result.steps_x0["samples"][LOOK - 1 : LOOK])
    return row | {"measures": row["measures"] | {"preview": feature(family, family.l2r(x0)[0])}}


def measure(family: Any, _: Item, clip: Any) -> dict[str, list[float]]:
    return {"clip": feature(family, clip.source)}


def feature(family: Any, frames: torch.Tensor) -> list[float]:
    return [round(value, 6) for value in family.scorer.encode_frames(frames).tolist()]


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def in_film(item: Item, chance: random.Random) -> str:
    """The caption, at any place among sentences on camera, light and mood."""
    return _filled([sentence(item.prompt)], list(FILM), chance)


def retold(item: Item, chance: random.Random) -> str:
    """The caption, and parts of it once more in the world's own words, in any order."""
    return _filled([sentence(item.prompt)], [sentence(_part(item.scene, chance)) for _ in range(30)], chance)


def in_parts(item: Item, chance: random.Random) -> str:
    """What the caption states, an object or relation a sentence, among those on camera, light and mood."""
    scene, wording = item.scene, partial(chance.randrange, 1000)
    first, *more = scene.objects
    if more and first == more[0] and scene.relation is None:
        stated = [caption(replace(scene, background=None), wording())]
    else:
        stated = [caption(Scene((thing,)), wording()) for thing in scene.objects]
    if scene.relation:
        at_rest = tuple(replace(thing, motion=None) for thing in scene.objects)
        stated.append(caption(Scene(at_rest, scene.relation), wording()))
    if scene.background:
        stated.append(f"the background is {scene.background}")
    return _filled(list(map(sentence, stated)), list(FILM), chance)


def _part(scene: Scene, chance: random.Random) -> str:
    thing = chance.choice(scene.objects)
    kept = [chance.random() < share for share in (0.7, 0.5)]
    alone = replace(thing, motion=thing.motion if kept[0] else None)
    return caption(Scene((alone,), background=scene.background if kept[1] else None), chance.randrange(1000))


def _filled(own: list[str], filler: list[str], chance: random.Random) -> str:
    """Sentences in any order, of WORDS words or a few more."""
    chance.shuffle(filler)
    while sum(len(text.split()) for text in own) < WORDS:
        own.append(filler.pop())
    chance.shuffle(own)
    return " ".join(own)


PADDINGS = {"film": in_film, "retold": retold, "parts": in_parts}


def soft_maximum(cosines: np.ndarray, shares: np.ndarray, sharpness: float) -> np.ndarray:
    """What pieces.aligned gives, of cosines [N, P]; at 0 the mean, at either infinity the largest or least."""
    if not sharpness:
        return cosines @ shares
    if math.isinf(sharpness):
        return cosines.max(1) if sharpness > 0 else cosines.min(1)
    return np.log(np.exp(cosines * sharpness) @ shares) / sharpness


class Texts:
    """The demo's scorer on texts, whole, cut or in pieces."""

    def __init__(self, family: DemoFamily):
        self.scorer, self.context = family.scorer, family.scorer.config.context
        self.tokenize, self.feature = cache(self.scorer._tokenize), cache(self._feature)

    def size(self, text: str) -> int:
        return len(self.tokenize(clean_text(text)))

    def _feature(self, text: str) -> np.ndarray:
        with torch.no_grad():
            ids = torch.tensor([context_ids(self.tokenize(text), self.context)])
            return F.normalize(self.scorer.model.encode_text(ids)[0].float(), dim=-1).numpy()

    def scores(self, text: str, clips: np.ndarray) -> dict[str, np.ndarray]:
        """By every way, of the features [N, D] of clips."""
        pieces = parted(clean_text(text), lambda part: self.size(part) <= self.context)
        features = np.stack([self.feature(piece) for piece in pieces])
        tokens = np.asarray([self.size(piece) - 2 for piece in pieces], float)
        shares, same = tokens / tokens.sum(), np.full(len(pieces), 1 / len(pieces))
        cosines, mean, scale = clips @ features.T, features.mean(0), self.scorer.scale
        ways = {f"{kind}, {sharpness:g}": soft_maximum(cosines, weights, sharpness / scale)
                for kind, weights in (("by length", shares), ("each alike", same)) for sharpness in SHARPNESSES}
        return {
            CUT: clips @ self.feature(clean_text(text)),
            "least": soft_maximum(cosines, same, -math.inf),
            "soft minimum, 10": soft_maximum(cosines, shares, -10 / scale),
            "mean text feature": clips @ (mean / np.linalg.norm(mean)), **ways,
        }  # fmt: skip


def compared(rows: dict[tuple[int, int], Row], items: Sequence[Item], texts: Texts, look: str) -> dict[str, Any]:
    """By padding and way: AUC within prompt and over all, how they differ from the short caption's, mean scores."""
    table: dict[str, Any] = {}
    for padding, make in PADDINGS.items():
        found: dict[str, list[float]] = {}
        right, groups, words, pieces = [], [], [], []
        for item in items:
            text = make(item, random.Random(item.index))
            own = [row for (index, _), row in rows.items() if index == item.index]
            clips = np.asarray([row["measures"][look] for row in own])
            short = {SHORT: clips @ texts.feature(clean_text(item.prompt))}
            for way, scores in (short | texts.scores(text, clips)).items():
                found.setdefault(way, []).extend(scores)
            right += [row["right"] for row in own]
            groups += [item.index] * len(own)
            words.append(len(text.split()))
            pieces.append(len(parted(clean_text(text), lambda part: texts.size(part) <= texts.context)))
        table[padding] = {
            "prompts": len(words), "clips": len(right), "right": sum(right), "words": float(np.mean(words)),
            "pieces": float(np.mean(pieces)), "example": make(items[1], random.Random(items[1].index)),
            "ways": {way: _figures(scores, right, groups, found[SHORT]) for way, scores in found.items()},
        }  # fmt: skip
    return table


def _figures(scores: list[float], right: list[bool], groups: list[int], short: list[float]) -> dict[str, Any]:
    return {
        "within": statistics.bootstrap_within(scores, right, groups),
        "all": statistics.bootstrap_auc(scores, right, groups),
        "within_change": statistics.bootstrap_within(scores, right, groups, short),
        "all_change": statistics.bootstrap_auc(scores, right, groups, short),
        "mean": float(np.mean(scores)),
    }  # fmt: skip


TITLES = {
    "film": "The caption among sentences on camera, light and mood",
    "retold": "The caption, and parts of it once more in the world's own words",
    "parts": "The caption told in parts, among sentences on camera, light and mood",
}


def markdown(document: dict[str, Any]) -> str:
    lines = [
        "# Prompts longer than the scorer reads", "",
        f"Clips of the demo world's short captions, scored against texts of {WORDS} words and a few more, which"
        " the scorer reads in pieces of at most 32 tokens: a sentence each. AUC is the chance that a clip that"
        " the judge calls right scores higher than a wrong one, of the same prompt (within) or of any (all); "
        "0.5 is chance. \"By length, 40\" is the soft maximum of the pieces' cosines (`aligned` in "
        "scoring/pieces.py), each counted by its tokens, at that sharpness; 0 is the mean, inf the best piece."
        f" The scorer takes {document['chosen']}: on validation prompts no finite sharpness does better, and it"
        f" moves scores least. Its tau is {document['tau']:.3f}. {made_by(document)}", "",
        "The demo's scorer was trained on captions alone, so sentences on mood are noise to it, more than they"
        " can be to ViCLIP, with which this was not measured. What pieces cannot do: facts that no sentence "
        "states together are not put together again (the last table of each half), and repetitions of what is "
        "easy hide what is hard.", "",
    ]  # fmt: skip
    for split, looks in document["results"].items():
        for padding, title in TITLES.items():
            about = looks["clip"][padding]
            lines += [
                f"## {title} ({split})", "",
                f"{about['clips']} clips, {about['right']} right, of {about['prompts']} prompts; "
                f"{about['words']:.0f} words in {about['pieces']:.1f} pieces. For example: "
                f"\"{about['example']}\"", "",
                "| scored against | within | less the short caption's | all | less the short caption's | preview at "
                f"step {LOOK}, within | all | mean score |", "|---|---|---|---|---|---|---|---|",
            ]  # fmt: skip
            for way, row in about["ways"].items():
                early = looks["preview"][padding]["ways"][way]
                change = ["-", "-"] if way == SHORT else [number(row[f"{kind}_change"]) for kind in ("within", "all")]
                name = f"**{way}**" if way == document["chosen"] else way
                lines.append(
                    f"| {name} | {number(row['within'])} | {change[0]} | {number(row['all'])} | {change[1]} | "
                    f"{early['within']['value']:.3f} | {early['all']['value']:.3f} | {row['mean']:.3f} |"
                )  # fmt: skip
            lines.append("")
    return "\n".join(lines)


def main() -> None:
    a = parser(__doc__, "long_prompts", prompts=40, seeds=4).parse_args()
    command = f"python -m foresight.lab.experiments.long_prompts --prompts {a.prompts} --seeds {a.seeds}"
    make = partial(Worker, Spec(methods=(PLAIN,), keep_clips=False), load=load, measure=measure)
    wanted = cells([PLAIN], range(FIRST_SEED, FIRST_SEED + a.seeds))
    load_comfyui()
    texts, results = Texts(DemoFamily()), {}
    for split, suite in SUITES.items():
        items, settings = load_suite(suite, a.prompts).items, {"suite": suite, "weights": fingerprint()}
        with experiment(a.work, items, make, settings, command, a.workers) as fill:
            rows = fill(lambda _: wanted)[PLAIN]
        results[split] = {look: compared(rows, items, texts, look) for look in ("clip", "preview")}
    chosen = {"chosen": f"by length, {SHARPNESS:g}", "tau": texts.scorer.tau}
    write(a.out, "long_prompts", command, {**chosen, "results": results}, markdown)


if __name__ == "__main__":
    main()
