"""What the tests notice: faults are planted one at a time, and the tests that name the module are run.

    python dev.py mutate                             every room of ROOMS (days; it goes on where it was stopped)
    python dev.py mutate scoring/detector.py trials  a module, a room

cosmic-ray plants them, in a copy of the checkout below .foresight/mutation. Of a module's faults a sample is taken, by
a seed; its results are kept there, so a run that was stopped goes on, and one whose module, tests or settings have
changed begins anew. After each module docs/results/mutation.json and .md are written, of all modules whose results are
still valid. A survivor is read, then killed by a test or named in equivalent.json, with the reason: such a fault
changes nothing that anybody could see.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cosmic_ray.commands
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkItem

from ...evaluation.results import environment, publish

ROOT = Path(__file__).resolve().parents[2]
CACHE, RESULTS = ROOT / ".foresight" / "mutation", ROOT / "docs" / "results"
EQUIVALENT = Path(__file__).with_name("equivalent.json")
ROOMS = ("scoring", "sampling", "trials", "nodes", "panel", "l2r", "refiner")
GOAL = 0.85
SLOW = ("comfy_server", "playwright")  # tests that start a server or a browser for a module they do not name
MOST_FILES = 6  # of tests for a module: those that name it most often
# Of cosmic-ray's operators those whose faults people make, without the many that are the same fault again.
OPERATORS = re.compile(
    r"core/(ReplaceComparisonOperator_(Eq_NotEq|NotEq_Eq|Lt_LtE|LtE_Lt|Gt_GtE|GtE_Gt|Lt_GtE|GtE_Lt|Gt_LtE|LtE_Gt|Is_IsNot"
    r"|IsNot_Is|In_NotIn|NotIn_In)|ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Div|Mod_FloorDiv|Pow_Mul"
    r"|BitOr_BitAnd|BitAnd_BitOr)|ReplaceUnaryOperator_(Delete_Not|Delete_USub)|AddNot|ReplaceTrueWithFalse"
    r"|ReplaceFalseWithTrue|ReplaceAndWithOr|ReplaceOrWithAnd|ReplaceBreakWithContinue|ReplaceContinueWithBreak"
    r"|NumberReplacer|RemoveDecorator|ZeroIterationForLoop)"
)


@dataclass(frozen=True)
class Fault:
    """line: its number. outcome: killed, survived or equivalent. change: lines of the diff."""

    module: str
    line: int
    operator: str
    outcome: str
    change: str


def modules(wanted: Iterable[str]) -> list[str]:
    """Paths below ROOT, of rooms and modules; ValueError for one that there is not."""
    found = []
    for name in wanted:
        path = ROOT / name
        if not (path.is_file() and path.suffix == ".py") and not path.is_dir():
            raise ValueError(f"{name} is neither a room nor a module of this checkout.")
        found += sorted(path.glob("*.py")) if path.is_dir() else [path]
    return [str(path.relative_to(ROOT)) for path in found if path.name != "__init__.py"]


def tests_of(module: str) -> list[str]:
    """Test files below ROOT that name a module most often; where none does, those of what imports it, and so on."""
    seen = level = [module]
    while level and not (found := [test for each in level for test in _naming(each)]):
        above = [each for each in modules((*ROOMS, "evaluation")) if any(_imports(each, other) for other in level)]
        level = [each for each in above if each not in seen]
        seen = [*seen, *level]
    return list(dict.fromkeys(found))[:MOST_FILES]


def _imports(module: str, other: str) -> bool:
    path = Path(other)
    text = (ROOT / module).read_text(encoding="utf-8")
    return bool(re.search(rf"from \.(\.{path.parent.name}\.)?{path.stem} import", text))


def _naming(module: str) -> list[str]:
    room, name = Path(module).parent.as_posix().replace("/", "."), Path(module).stem
    named = re.compile(rf"foresight\.{room}\.{name}\b|from foresight\.{room} import .*\b{name}\b")
    mentions = {}
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        own = path.stem == f"test_{name}"
        if own or (named.search(text) and not any(word in text for word in SLOW)):
            mentions[f"tests/{path.name}"] = (own, len(re.findall(rf"\b{name}\b", text)))
    return sorted(mentions, key=mentions.__getitem__, reverse=True)[:MOST_FILES]


def worth_planting(items: Iterable[WorkItem], source: str) -> Iterator[WorkItem]:
    """Of the OPERATORS, without what no run could see: annotations, which are never evaluated, and classes that are no
    longer frozen, which only forbids what nobody does."""
    spans = [
        ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset))
        for each in ast.walk(ast.parse(source))
        for node in (getattr(each, "annotation", None), getattr(each, "returns", None)) if node is not None
    ]  # fmt: skip
    lines = source.splitlines()
    for item in items:
        (fault,) = item.mutations
        if "frozen=True" in lines[fault.start_pos[0] - 1]:
            continue
        noted = any(begin <= tuple(fault.start_pos) < end for begin, end in spans)
        if OPERATORS.fullmatch(fault.operator_name) and not noted:
            yield item


def sample(items: Iterable[WorkItem], module: str, most: int, seed: int) -> list[WorkItem]:
    """The same faults for the same module and seed; most: 0 for all."""
    ordered = sorted(items, key=lambda item: (item.mutations[0].operator_name, item.mutations[0].occurrence))
    if most and len(ordered) > most:
        return random.Random(f"{seed} {module}").sample(ordered, most)
    return ordered


class Copy:
    """A copy of the checkout's tracked files, as they are now, in which faults are planted."""

    def __init__(self, folder: Path):
        self.folder = folder / "copy"
        shutil.rmtree(self.folder, ignore_errors=True)
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
        for name in filter(None, listed.decode().split("\0")):
            if (ROOT / name).is_file():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, self.folder / name)
        link = folder / "path" / "foresight"
        link.parent.mkdir(exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(self.folder)
        os.environ |= {"PYTHONPATH": str(link.parent), "OMP_NUM_THREADS": "1"}  # of the tests, not of this process

    def command(self, tests: list[str]) -> str:
        return f"{sys.executable} -m pytest -x -q -p no:cacheprovider {' '.join(tests)}"

    def seconds(self, tests: list[str]) -> float:
        """That the tests take without a fault; ValueError where they fail."""
        begin = time.monotonic()
        ran = subprocess.run(self.command(tests).split(), cwd=self.folder, stdout=subprocess.PIPE, text=True)
        if ran.returncode:
            raise ValueError(f"{' '.join(tests)} fail without a fault:\n{ran.stdout[-2000:]}")
        return time.monotonic() - begin


def session(module: str, most: int, seed: int) -> Path:
    """Where the results of a module are kept; another file as soon as anything that they depend on has changed."""
    files = [module, *tests_of(module)]
    parts = [f"{most} {seed} {OPERATORS.pattern}", *((ROOT / file).read_text(encoding="utf-8") for file in files)]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
    return CACHE / f"{module.removesuffix('.py').replace('/', '.')}.{digest}.sqlite"


def plant(module: str, copy: Copy, most: int, seed: int) -> None:
    """Runs what is left of a module's sample."""
    tests, path = tests_of(module), session(module, most, seed)
    if not tests:
        print(f"{module}: no test names it", flush=True)
        return
    os.chdir(copy.folder)  # cosmic-ray writes into the module at this relative path
    with use_db(path, WorkDB.Mode.create) as work:
        if not work.num_work_items:
            cosmic_ray.commands.init([Path(module)], work, {})
            worth = worth_planting(work.work_items, Path(module).read_text(encoding="utf-8"))
            chosen = sample(worth, module, most, seed)
            work.clear()
            work.add_work_items(chosen)
        left = work.pending_work_items
        limit = 20 + 3 * copy.seconds(tests) if left else 0
        for done, item in enumerate(left, 1):
            result = mutate_and_test(item.mutations, copy.command(tests), limit)
            work.set_result(item.job_id, result)
            print(f"{module} {done}/{len(left)}: {result.test_outcome}", flush=True)


def faults(module: str, path: Path, equivalent: list[dict[str, str]]) -> list[Fault]:
    """What became of those that were planted, where all of the sample were."""
    if not path.exists():
        return []
    with use_db(path, WorkDB.Mode.open) as work:
        if work.pending_work_items:
            return []
        found = []
        for item, result in work.completed_work_items:
            (spec,) = item.mutations
            change = "\n".join(text for text in (result.diff or "").splitlines() if re.match(r"[+-](?![+-]{2} )", text))
            outcome = "survived" if result.test_outcome == TestOutcome.SURVIVED else "killed"
            known = any((e["module"], e["change"]) == (module, change) for e in equivalent)
            outcome = "equivalent" if known and outcome == "survived" else outcome
            found.append(Fault(module, spec.start_pos[0], spec.operator_name.removeprefix("core/"), outcome, change))
    return found


def document(found: list[Fault], command: str, most: int, seed: int) -> dict[str, Any]:
    def score(of: list[Fault]) -> dict[str, Any]:
        counts = {name: sum(fault.outcome == name for fault in of) for name in ("killed", "survived", "equivalent")}
        judged = counts["killed"] + counts["survived"]
        return {"planted": len(of), **counts, "score": counts["killed"] / judged if judged else None}

    rooms = sorted({fault.module.split("/")[0] for fault in found})
    return {
        "schema": "foresight.mutation", "version": 1, "environment": environment(command), "seed": seed,
        "most_of_a_module": most, "goal": GOAL,
        "rooms": {room: score([fault for fault in found if fault.module.startswith(f"{room}/")]) for room in rooms},
        "modules": {
            module: score([fault for fault in found if fault.module == module])
            for module in sorted({fault.module for fault in found})
        },
        "survivors": [
            {"module": fault.module, "line": fault.line, "operator": fault.operator, "change": fault.change}
            for fault in sorted(found, key=lambda fault: (fault.module, fault.line)) if fault.outcome == "survived"
        ],
    }  # fmt: skip


def page(whole: dict[str, Any]) -> str:
    def table(name: str, scores: dict[str, Any]) -> list[str]:
        rows = [f"| {name} | planted | killed | survived | equivalent | score |", "|---|---|---|---|---|---|"]
        for key, each in scores.items():
            share = "-" if each["score"] is None else f"{100 * each['score']:.0f} %"
            counts = " | ".join(str(each[count]) for count in ("planted", "killed", "survived", "equivalent"))
            rows.append(f"| {key} | {counts} | {share} |")
        return rows

    lines = [
        "# What the tests notice", "",
        f"`{whole['environment']['command']}` (in a clone of the repository only) plants faults one at a time, and "
        "runs the tests that name the module. "
        f"The goal is to notice {100 * GOAL:.0f} % of what is not equivalent.", "",
        *table("room", whole["rooms"]), "", *table("module", whole["modules"]), "",
    ]  # fmt: skip
    for each in whole["survivors"]:
        place = f"{each['module']}, line {each['line']} ({each['operator']})"
        lines += [f"{place}:", "", "```diff", each["change"], "```", ""]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="dev.py mutate", description=__doc__.split("\n\n")[0])
    parser.add_argument("rooms", nargs="*", default=ROOMS, help="rooms and modules, as scoring or trials/cost.py")
    parser.add_argument("--most", type=int, default=40, help="faults of a module; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    a = parser.parse_args(arguments)
    try:
        chosen = modules(a.rooms)
    except ValueError as error:
        parser.error(str(error))
    CACHE.mkdir(parents=True, exist_ok=True)
    copy, out = Copy(CACHE), a.out.resolve()
    command = f"python dev.py mutate --most {a.most} --seed {a.seed}"
    for module in chosen:
        plant(module, copy, a.most, a.seed)
        equivalent = json.loads(EQUIVALENT.read_text(encoding="utf-8"))
        found = [
            fault for known in modules(room for room in ROOMS if (ROOT / room).is_dir())
            for fault in faults(known, session(known, a.most, a.seed), equivalent)
        ]  # fmt: skip
        whole = document(found, command, a.most, a.seed)
        publish(out, "mutation", whole, page(whole))
    return 0


if __name__ == "__main__":
    sys.exit(main())
