"""Fits the race to your own model: one command from your graph to a preset that Foresight Sampler picks up.

    python -m foresight.evaluation tune --server http://127.0.0.1:8188 --graph my_workflow.json --prompts prompts.txt

Your graph (exported in ComfyUI by Workflow > Export (API)) is run plainly for every prompt and seed, and every step is
scored; the clips are those that you get without Foresight. What is found is kept in one file: stop the command when you
like, the same one goes on. In the end it shows how early your model can be judged and what each budget would bring, and
writes the preset.

Whether a clip is good says its final score, unless you say so: the clips lie in OUT/clips, and OUT/judgements.csv lists
them; write right or wrong behind each, and start the same command with --judgements OUT/judgements.csv.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import sys
import urllib.error
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from ..scoring.detector import reached
from .api_graph import GraphError, read_graph
from .backend import Sampled, no_judge
from .bench import BASE, LIGHT, Bench, Method, Row, reported
from .calibrate_race import calibrate_race
from .evidence import DATABASE, Evidence, load
from .fill import cells, fingerprint_of, keep, missing
from .over_api import Api
from .own_graph import FRAMES, REPORT, OwnGraph
from .results import command_parser, number
from .server import ExecutionFailed, Interrupted, PromptRejected
from .store import Store, StoreError
from .suites import Item, SuiteError, load_suite
from .workers import ATTEMPTS, Job, Outcome

PROMPTS, SEEDS = 10, 2  # the least that a race can be fitted to
SHOWN = (0.04, 0.08, 0.12, 0.16, 0.2, 0.28, 0.4, 0.6, 0.8, 1.0)  # of the schedule: how early a clip can be judged
EITHER = 0.1  # of the clips, that must be good and that must not be, for a threshold to part them
VERDICTS = {"right": True, "wrong": False}
COLUMNS = ("clip", "prompt", "verdict")


class Problem(Exception):
    """Something the user can put right; shown without a traceback."""


class Plain(Api):
    """A backend (see backend.Backend) that runs a person's graph. steps: of the schedule, known from the first run."""

    steps = 0

    def use(self, graph: OwnGraph) -> Plain:
        self.own = graph
        return self

    def sample(self, prompt: str, seed: int, settings: Mapping[str, Any] | None = None, light: bool = False) -> Sampled:
        """settings: those of backend.Backend; every step is scored in any case. ValueError where it could not be."""
        clip = self.sampled(self.own.prompt(prompt, seed, light), REPORT, FRAMES)
        (trial,) = clip.report["trials"]
        if len(trial["items"]) > 1:
            raise Problem(f"the graph makes {len(trial['items'])} clips at once: set the latent's batch_size to 1.")
        if not trial["verdict"] or all(score is None for _, score in trial["verdict"]["trace"]):
            raise ValueError(f"no step could be scored: {'; '.join(clip.report['notes']) or 'the sampler shows none'}")
        self.steps = clip.report["settings"]["steps"]
        return clip

    def light(self, bench: Bench, seed: int) -> Row:
        clip = self.sample(bench.item.prompt, seed, light=True)
        return bench.finished(seed, LIGHT, clip) | reported(clip.report) | {"report": clip.report}


def placed(items: Sequence[Item], rows: Sequence[Row]) -> list[Item]:
    """The prompts at the places that they have in the database, new ones behind: the file may grow or be sorted."""
    places = {row["prompt"]: row["prompt_index"] for row in rows}
    new = max(places.values(), default=-1)
    return [replace(i, index=places[i.prompt] if i.prompt in places else (new := new + 1)) for i in items]


def runs(backend: Plain, jobs: Sequence[Job]) -> Iterator[Outcome]:
    """One clip at a time, so that little is lost when the command is stopped. A clip that fails is left out."""
    machine, versions = backend.where()
    methods = {BASE: Method(BASE, Bench.base), LIGHT: Method(LIGHT, backend.light)}
    in_vain = 0
    for job in jobs:
        bench = Bench(backend, job.item, no_judge, job.known)
        ((method, seed),) = job.cells
        try:
            bench.row(methods[method], seed)
        except PromptRejected as refused:
            raise Problem(f"the server refuses the graph: {refused}") from None
        except (ExecutionFailed, ValueError) as error:
            in_vain += 1
            reason = ValueError(str(error).partition("\n")[0])
            if in_vain == ATTEMPTS:
                raise Problem(f"{ATTEMPTS} clips in a row failed, the last one with: {reason}") from None
            yield job, reason
            continue
        in_vain = 0
        yield job, {"rows": bench.added, "machine": machine, "versions": versions}


def name_of(row: Row) -> str:
    return f"{row['prompt_index']:04}_{row['seed']}{'_light' if row['method'] == LIGHT else ''}"


def show_clips(store: Store, rows: Sequence[Row], out: Path) -> None:
    """Every clip as a file, and a line in the list that a person can judge them in; what is there stays."""
    (out / "clips").mkdir(exist_ok=True)
    path = out / "judgements.csv"
    begun = path.exists() and path.stat().st_size > 0
    listed = {line["clip"] for line in _lines(path)} if begun else set()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        if not begun:
            writer.writerow(COLUMNS)
        for row in rows:
            clip = out / "clips" / f"{name_of(row)}.webp"
            if not clip.exists():
                clip.write_bytes(store.clip(row))
            if name_of(row) not in listed:
                writer.writerow((name_of(row), row["prompt"], ""))


def _lines(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Problem(f"the judgements {path} cannot be read: {error}.") from None
    if lines and not {"clip", "verdict"} <= set(lines[0]):
        raise Problem(f"{path} has the columns {', '.join(map(str, lines[0]))}: it needs {', '.join(COLUMNS)}.")
    return lines


def judged(evidence: Evidence, path: Path) -> Evidence:
    """With the verdicts of a person; clips without one are left out. Problem."""
    rows = {name_of(row): row for of in evidence.rows.values() for row in of.values()}
    verdicts: dict[str, bool] = {}
    for place, line in enumerate(_lines(path), 2):
        clip, verdict = Path((line["clip"] or "").strip()).stem, (line["verdict"] or "").strip().lower()
        if clip not in rows:
            raise Problem(f"{path}, line {place}: there is no clip {clip!r} in {evidence.path}.")
        if verdict and verdict not in VERDICTS:
            raise Problem(f"{path}, line {place}: the verdict is {verdict!r}: write right or wrong, or nothing.")
        if verdict:
            verdicts[clip] = VERDICTS[verdict]
    if not verdicts:
        raise Problem(f"{path} holds no verdict yet: write right or wrong behind the clips.")
    print(f"{len(verdicts)} of {len(rows)} clips are judged in {path}; only these count.")
    return replace(evidence, rows={
        method: {key: row | {"right": verdicts[name_of(row)]} for key, row in of.items() if name_of(row) in verdicts}
        for method, of in evidence.rows.items()
    })  # fmt: skip


def parted(evidence: Evidence, good: float | None) -> tuple[Evidence, str]:
    """With the final score from which on a clip is good, and what to say of it."""
    scores = np.asarray([row["final_score"] for row in evidence.rows[BASE].values()])
    tau, whose = (evidence.tau, "the scorer's own threshold") if good is None else (good, "--good")
    above = float((scores >= tau).mean())
    if good is None and not EITHER <= above <= 1 - EITHER:
        said = f"{above:.0%} of the clips reach the scorer's own {tau:g}, which parts nothing; this is their median"
        tau, whose = float(np.median(scores)), said
    return replace(evidence, settings=evidence.settings | {"tau": tau}), f"a final score of {tau:.4g} ({whose})"


def early(evidence: Evidence) -> list[str]:
    """How early a clip can be judged, as a Markdown table."""
    base, steps = evidence.base, evidence.steps
    return [
        "| step | of the schedule | AUC within prompt |", "|---|---|---|",
        *(f"| {step} | {step / steps:.0%} | {number(base.within(base.traces[:, step - 1]))} |"
          for step in sorted({reached(share, steps) for share in SHOWN})),
    ]  # fmt: skip


def show(evidence: Evidence, a: argparse.Namespace) -> None:
    """What the runs tell, and the preset. Problem."""
    if a.judgements:
        evidence, by = judged(evidence, a.judgements), f"your judgements in {a.judgements}"
    else:
        evidence, by = parted(evidence, a.good)
    evidence = replace(evidence, settings=evidence.settings | {"good_by": by})
    base = evidence.base
    print(f"\nGood by {by}: {int((~base.failed).sum())} of {len(base)} plain clips.")
    if not base.judged:
        print(
            "There is no judge here: the scorer grades itself. What follows says how early it knows its own final "
            "score,\nand what brings a higher one. Whether those clips are better, your eyes can tell (--judgements)."
        )
    if base.failed.all() or not base.failed.any():
        raise Problem("all clips came off alike, so there is nothing to foretell: use harder or easier prompts.")
    failed_of = [base.failed[base.prompt == prompt] for prompt in np.unique(base.prompt)]
    pairs = sum(int(failed.sum() * (~failed).sum()) for failed in failed_of)
    print(
        "\nHow early a clip can be judged: the chance that a good one scores above a failed one of its prompt (95 % "
        f"interval over prompts; {pairs} such pairs)\n"
    )
    print("\n".join(early(evidence)))
    if (light := evidence.rows.get(LIGHT, {}).values()) and all(row["nfe"] == row["nfe_plain"] for row in light):
        print(f"\nOn {evidence.steps} steps light self-refinement has no step of its own: later and all are like off.")
    print("\nWhat each budget would bring:\n")
    try:
        calibrate_race(evidence, a.preset or a.out / f"{a.graph.stem}_race.json", a.folds)
    except ValueError as error:
        raise Problem(str(error)) from None


def options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("tune", __doc__)
    add = parser.add_argument
    add("--server", default="http://127.0.0.1:8188", metavar="URL", help="a running ComfyUI with this pack")
    add("--graph", type=Path, required=True, help="your graph, exported by Workflow > Export (API)")
    add("--prompts", required=True, metavar="FILE", help="one prompt a line; 10 at least, 50 to 200 are better")
    add("--seeds", type=int, default=4, help="clips of each prompt (4)")
    add("--first-seed", type=int, default=1000)
    add("--light", action="store_true", help="also lightly self-refined, so that the preset can say later and all")
    add("--out", type=Path, default=Path("out/tune"), help="folder of the runs and clips (out/tune)")
    add("--preset", type=Path, metavar="FILE", help="the preset, for example in models/foresight_races (in --out)")
    add("--judgements", type=Path, metavar="FILE", help="a CSV of your own: clip, verdict (right or wrong)")
    add("--good", type=float, metavar="SCORE", help="without judgements: the final score from which on a clip is good")
    add("--scorer", metavar="FILE", help="of the server's models/foresight (the graph's own, else the first)")
    add("--converter", metavar="FILE", help="of the server's models/foresight_l2r (the graph's own, else auto)")
    add("--prompt-node", metavar="ID", help="the node that the prompts go to, where the graph joins several texts")
    add("--folds", type=int, default=5, help="parts of the prompts for cross-validation (5)")
    a = parser.parse_args(arguments)
    a.typed = arguments
    for name, least in (("seeds", 1), ("folds", 2), ("first_seed", 0)):
        if getattr(a, name) < least:
            raise Problem(f"--{name.replace('_', '-')} is {getattr(a, name)}: it must be {least} or more.")
    return a


def tune(arguments: Sequence[str]) -> None:
    a = options(arguments)
    nodes, suite = read_graph(a.graph), load_suite(a.prompts)
    for note in suite.notes:
        print(f"{suite.name}: {note}")
    try:
        backend = Plain(a.server)
    except ConnectionError as error:
        raise Problem(str(error)) from None
    graph = OwnGraph.of(nodes, backend.nodes, a.scorer, a.converter, a.prompt_node)
    methods, seeds = [BASE, LIGHT][: 1 + a.light], list(range(a.first_seed, a.first_seed + a.seeds))
    graph.prompt("a test", 0, a.light)  # what cannot be refined is told before anything is sampled
    settings = {"graph": graph.prompt("", 0), "tuned": graph.sampler}
    settings |= {"fingerprint": fingerprint_of(settings)}
    used = graph.graph.inputs(graph.sampler)
    shown = {"sampler": "sampler_name", "scheduler": "scheduler", "steps": "steps", "cfg": "cfg"}
    settings |= {key: used[name] for key, name in shown.items() if isinstance(used.get(name), (str, int, float))}
    settings |= {"suite": suite.name, "model": a.graph.name, "prompts": len(suite.items), "seeds": seeds}
    print(f"{graph.graph.name(graph.sampler)} samples, {graph.graph.name(graph.decoder)} decodes, "
          f"{graph.scorer['inputs']['weights']} scores.")  # fmt: skip
    enough = len(suite.items) >= PROMPTS and a.seeds >= SEEDS
    if not enough:
        print(
            f"{len(suite.items)} prompts with {a.seeds} seeds show whether all works; a preset takes {PROMPTS} prompts "
            f"with {SEEDS} seeds at least. The same command with more goes on from these."
        )
    with Store(a.out / DATABASE, write=True) as store:
        if others := set(store.fingerprints()) - {settings["fingerprint"]}:
            raise Problem(
                f"{store.path} holds runs of another graph, scorer or converter ({', '.join(sorted(others))}): give "
                "another --out."
            )
        rows = store.rows(settings["fingerprint"])
        wanted = cells(methods, seeds)
        whole = missing(placed(suite.items, rows), lambda _: wanted, rows)
        jobs = [Job(job.item, (cell,), job.known) for job in whole for cell in job.cells]
        measured = [row["seconds"] for row in rows]
        each = f", about {np.mean(measured) * len(jobs) / 60:.0f} min of sampling" if measured and jobs else ""
        print(f"{len(jobs)} clips to make, {len(rows)} are there{each}", flush=True)
        command = f"python -m foresight.evaluation tune {shlex.join(a.typed)}"
        failed = keep(store, jobs, runs(backend.use(graph), jobs), command, settings) if jobs else 0
        show_clips(store, store.rows(settings["fingerprint"]), a.out)
    if failed:
        print(f"{failed} clips failed; the same command tries them again.")
    if enough:
        show(load(a.out / DATABASE, settings["fingerprint"]), a)


def main(arguments: Sequence[str]) -> None:
    again = "the same command goes on from here"
    try:
        tune(arguments)
    except (Problem, GraphError, SuiteError, StoreError) as problem:
        sys.exit(f"evaluation tune: {problem}")
    except (urllib.error.URLError, ConnectionError, TimeoutError, HTTPException) as error:
        sys.exit(f"evaluation tune: the server answers no more ({error}): start it again; {again}.")
    except Interrupted as cancelled:
        sys.exit(f"evaluation tune: {cancelled} on the server; {again}.")
    except KeyboardInterrupt:
        sys.exit(f"evaluation tune: stopped; {again} (the server still finishes the clip that it is at).")
