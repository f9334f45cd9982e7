"""Which prompts are evaluated: the demo world's, VBench's own, or the lines of any text file."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

from ..demo.captions import parse_caption
from ..demo.captions import prompt as demo_prompt
from ..demo.world import DIFFICULTIES, Scene

# A suite file with a longer line is some other file (a book, a log in one line); video models read a few hundred words.
LONGEST = 20_000
# Of the demo world: results are told on test prompts, settings chosen on validation prompts that no training looked at.
DEMO = {"demo": ("test", 0), "demo_validation": ("validation", 200)}
SHOWN = 60  # characters of a prompt in a message
VICLIP_WORDS = 32  # its context: longer prompts are scored in pieces, which VBench does not do


class SuiteError(Exception):
    """What is wrong with a suite, and the way out."""


@dataclass(frozen=True)
class Item:
    """One prompt. index: its place in the suite. group: demo difficulty, VBench dimension, or "". scene: what the demo
    judge compares clips with; None: there is no ground truth."""

    index: int
    prompt: str
    group: str = ""
    scene: Scene | None = None


@dataclass(frozen=True)
class Suite:
    """notes: what the reader of the suite left out or wants known."""

    name: str
    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()


def load_suite(name: str, count: int | None = None) -> Suite:
    """"demo", "demo_validation", "vbench" or the path of a text file with one prompt a line; its first `count` prompts.
    SuiteError."""
    if count is not None and count < 1:
        raise SuiteError(f"{count} prompts are asked for: ask for 1 or more.")
    if name in DEMO:
        return _demo(name, 60 if count is None else count)
    suite = _vbench() if name == "vbench" else _file(Path(name))
    return Suite(suite.name, suite.items[:count], suite.notes)


def _demo(name: str, count: int) -> Suite:
    """Difficulties in turn, so that any beginning of the suite holds as many of each."""
    split, first = DEMO[name]
    items = []
    for index in range(count):
        group = DIFFICULTIES[index % len(DIFFICULTIES)]
        prompt, scene = demo_prompt(split, group, first + index // len(DIFFICULTIES))
        items.append(Item(index, prompt, group, scene))
    return Suite(name, tuple(items))


def _vbench() -> Suite:
    """The prompts of the installed package, all 946: two of them stand there twice and are counted twice by VBench."""
    package = importlib.util.find_spec("vbench")  # not imported: importing it asks for much that is not needed
    if package is None or package.origin is None:
        raise SuiteError("the suite vbench needs VBench's prompts: pip install --no-deps vbench")
    path = Path(package.origin).parent / "VBench_full_info.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        items = [Item(index, e["prompt_en"], e["dimension"][0]) for index, e in enumerate(entries)]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise SuiteError(f"{path} is not VBench's list of prompts ({error}): install vbench 0.1.5 again.") from None
    return Suite("vbench", tuple(items))


def _file(path: Path) -> Suite:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SuiteError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from None
    except OSError as error:
        raise SuiteError(
            f"no suite {str(path)!r} ({error.strerror or error}): name demo, demo_validation, vbench, or a text file, "
            "one prompt a line."
        ) from None
    prompts: dict[str, int] = {}
    empty, doubled, notes = 0, 0, []
    # Not splitlines(), which also parts lines at characters that may stand in a prompt.
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        prompt = line.strip()
        if "\0" in prompt:
            raise SuiteError(f"{path}, line {number}: it holds zero bytes, so this is no text file.")
        if len(prompt) > LONGEST:
            raise SuiteError(
                f"{path}, line {number} has {len(prompt):,} characters, more than {LONGEST:,}: write one prompt a line."
            )
        empty += not prompt
        doubled += prompt in prompts
        if prompt and prompt not in prompts:
            prompts[prompt] = number
    if not prompts:
        raise SuiteError(f"{path} has no prompts: write one on each line.")
    empty -= text.endswith("\n")  # what follows the last line's end is no line
    if empty > 0:
        notes.append(f"{empty} empty line(s) left out")
    if doubled:
        notes.append(f"{doubled} repeated prompt(s) left out: the same prompt and seed give the same clip")
    for prompt, number in prompts.items():
        if (words := len(prompt.split())) > VICLIP_WORDS:
            notes.append(
                f"line {number} has {len(prompt):,} characters, {words:,} words: the model gets all of them, the "
                f"scorer reads them in pieces of about {VICLIP_WORDS} words ({prompt[:SHOWN]!r}...)"
            )
    foreign = [number for prompt, number in prompts.items() if any(c.isalpha() and c > "\u024f" for c in prompt)]
    if foreign:
        notes.append(
            f"{len(foreign)} prompt(s) with letters that are not Latin (first: line {foreign[0]}): ViCLIP was trained "
            "on English, so their scores say little"
        )
    items = (Item(index, prompt, "", parse_caption(prompt)) for index, prompt in enumerate(prompts))
    return Suite(path.name, tuple(items), tuple(notes))
