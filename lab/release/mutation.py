"""What the tests notice: faults are planted one at a time, and the tests that run the faulty function are run.

    python dev.py mutate                             every room of ROOMS (hours; it goes on where it was stopped)
    python dev.py mutate trials nodes                two rooms
    python dev.py mutate scoring/detector.py         a module: shown, not published

cosmic-ray plants them, in a copy of the checkout below .foresight/mutation. Of a room's faults a sample is taken by a
seed, from each module in proportion. First every test file is run once, to see which test calls which function
(touched.py); then for each fault those that call its function, first those that call little else, and then the others
of their files, as many as --seconds allows. What became of a fault is kept there until its module changes; a survivor
is planted again when its tests change. After each room docs/results/mutation.json and .md are written, of all rooms
whose sample is whole. A survivor is read, then killed by a test or named in equivalent.json, with the reason: such a
fault changes nothing that anybody could see. It needs a system that can fork.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import cosmic_ray.commands
import cosmic_ray.plugins
from cosmic_ray.mutating import use_mutation
from cosmic_ray.work_db import WorkDB, use_db

from ...evaluation.results import environment, publish
from .touched import Forks, function_name, import_once, record

ROOT = Path(__file__).resolve().parents[2]
CACHE, RESULTS = ROOT / ".foresight" / "mutation", ROOT / "docs" / "results"
EQUIVALENT = Path(__file__).with_name("equivalent.json")
ROOMS = ("scoring", "sampling", "trials", "nodes", "panel", "l2r", "refiner")
GOAL = 0.85
Recorded = dict[str, dict[str, Any]]  # see touched.record
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
    """line: its number. outcome: killed, survived or equivalent. change: lines of the diff. test: the first that
    failed, or what else told of it. tried: of a survivor, its tests as they were."""

    module: str
    line: int
    operator: str
    occurrence: int
    outcome: str = ""
    change: str = ""
    test: str = ""
    tried: str = ""


def modules(root: Path, name: str) -> list[str]:
    """Paths below root, of a room or a module; ValueError where there is none."""
    path = root / name
    if not (path.is_file() and path.suffix == ".py") and not path.is_dir():
        raise ValueError(f"{name} is neither a room nor a module of this checkout.")
    found = sorted(path.glob("*.py")) if path.is_dir() else [path]
    return [str(path.relative_to(root)) for path in found if path.name != "__init__.py"]


def worth_planting(root: Path, module: str) -> tuple[Fault, ...]:
    """Of the OPERATORS, without what no run could see: annotations, which are never evaluated, and classes that are no
    longer frozen, which only forbids what nobody does."""
    return _worth_planting(module, root / module, (root / module).read_text(encoding="utf-8"))


@cache
def _worth_planting(module: str, path: Path, source: str) -> tuple[Fault, ...]:
    found = []
    spans = [
        ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset))
        for each in ast.walk(ast.parse(source))
        for node in (getattr(each, "annotation", None), getattr(each, "returns", None)) if node is not None
    ]  # fmt: skip
    lines = source.splitlines()
    with use_db(":memory:", WorkDB.Mode.create) as work:
        cosmic_ray.commands.init([path], work, {})
        for spec in (spec for item in work.work_items for spec in item.mutations):
            noted = any(begin <= tuple(spec.start_pos) < end for begin, end in spans)
            line = spec.start_pos[0]
            if OPERATORS.fullmatch(spec.operator_name) and not noted and "frozen=True" not in lines[line - 1]:
                found.append(Fault(module, line, spec.operator_name, spec.occurrence))
    return tuple(found)


def sample(faults: Iterable[Fault], most: int, seed: int) -> list[Fault]:
    """The same faults for the same modules and seed, from each module in proportion; a smaller sample is a part of a
    larger one. most: 0 for all."""
    order: dict[str, list[Fault]] = {}
    for fault in sorted(faults, key=lambda each: _digest(f"{seed} {each.module} {each.operator} {each.occurrence}")):
        order.setdefault(fault.module, []).append(fault)
    placed = [((n + 0.5) / len(of), module, n) for module, of in sorted(order.items()) for n in range(len(of))]
    return [order[module][n] for _, module, n in sorted(placed)[: most or None]]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def function_at(source: str, line: int) -> str:
    """The qualified name of the function or method that holds a line; "" for what a module or a class runs itself."""

    def within(body: list[ast.stmt], prefix: str) -> str:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                if first <= line <= node.end_lineno:
                    name = f"{prefix}{node.name}"
                    return within(node.body, f"{name}.") if isinstance(node, ast.ClassDef) else name
        return ""

    return function_name(within(ast.parse(source).body, ""))


def tests_for(root: Path, fault: Fault, recorded: Recorded, seconds: float) -> list[str]:
    """Node ids: those that call the fault's function (the module's, or those of what imports it, where none does), the
    ones that call the least first; then the others of their files; as many as take so long together."""
    function = function_at((root / fault.module).read_text(encoding="utf-8"), fault.line)

    def calling(begin: str, end: str = "") -> list[str]:
        named = begin + end
        return [
            name for name, test in recorded.items()
            if any(each == named if end else each.startswith(begin) for each in test["functions"])
        ]  # fmt: skip

    found = calling(f"{fault.module}:", function) if function else []
    level = seen = [fault.module]
    while level and not found:
        found = [name for module in level for name in calling(f"{module}:")]
        above = [each for room in ROOMS if (root / room).is_dir() for each in modules(root, room)]
        level = [each for each in above if each not in seen and any(_imports(root / each, other) for other in level)]
        seen = [*seen, *level]
    files = {_file(name) for name in found}
    others = [name for name in recorded if _file(name) in files]
    nearest = [*sorted(found, key=_distance(recorded)), *sorted(others, key=_distance(recorded))]
    chosen, spent = [], 0.0
    for name in dict.fromkeys(nearest):
        spent += recorded[name]["seconds"]
        if spent > seconds and chosen:
            break
        chosen.append(name)
    # A file's tests together, so that what they share is made once.
    place = {file: n for n, file in enumerate(dict.fromkeys(map(_file, chosen)))}
    calls = set(found)
    return sorted(chosen, key=lambda name: (name not in calls, place[_file(name)]))


def _file(test: str) -> str:
    return test.split("::")[0]


def _distance(recorded: Recorded) -> Callable[[str], tuple[int, float]]:
    """What calls little else is likelier to be about the function."""
    return lambda name: (len(recorded[name]["functions"]), recorded[name]["seconds"])


def _imports(module: Path, other: str) -> bool:
    path, text = Path(other), module.read_text(encoding="utf-8")
    return bool(re.search(rf"from \.(\.{path.parent.name}\.)?{path.stem} import", text))


def copy_of(folder: Path) -> Path:
    """A copy of the checkout's tracked files, as they are now, in which faults are planted."""
    copy = folder / "foresight"
    shutil.rmtree(copy, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    compileall.compile_dir(copy, quiet=2)
    return copy


class Kept:
    """What became of the faults of a module, in a file for each text of it."""

    def __init__(self, root: Path, module: str):
        digest = _digest((root / module).read_text(encoding="utf-8"))
        self.path = CACHE / "faults" / f"{module.replace('/', '.')}.{digest}.json"
        known = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else []
        self.faults = {(each["operator"], each["occurrence"]): Fault(**each) for each in known}

    def of(self, fault: Fault) -> Fault | None:
        return self.faults.get((fault.operator, fault.occurrence))

    def keep(self, fault: Fault) -> None:
        self.faults[fault.operator, fault.occurrence] = fault
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps([asdict(each) for each in self.faults.values()], indent=1), encoding="utf-8")


def plant(
    fault: Fault, forks: Forks, recorded: Recorded, seconds: float, equivalent: list[dict[str, str]]
) -> Fault:
    """What became of it; at once where that is known."""
    kept = Kept(forks.copy, fault.module)
    known = kept.of(fault)
    if known and judged(known, equivalent).outcome != "survived":
        return known
    tests = tests_for(forks.copy, fault, recorded, seconds)
    texts = [(forks.copy / file).read_text(encoding="utf-8") for file in sorted({_file(test) for test in tests})]
    tried = _digest("\0".join([*tests, *texts]))
    if known and known.tried == tried:
        return known
    usual = {name: recorded[name]["seconds"] for name in tests}
    operator = cosmic_ray.plugins.get_operator(fault.operator)()
    with use_mutation(forks.copy / fault.module, operator, fault.occurrence) as (before, after):
        first = forks.run(tests, usual)["first"] if tests else ""
    old, new = before.splitlines(), after.splitlines()
    same = next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), 0)
    tail = next((n for n, (a, b) in enumerate(zip(old[::-1], new[::-1], strict=False)) if a != b), 0)
    lines = [f"-{text}" for text in old[same : len(old) - tail]], [f"+{text}" for text in new[same : len(new) - tail]]
    change = "\n".join([*lines[0], *lines[1]])
    outcome = "killed" if first else "survived"
    kept.keep(result := replace(fault, outcome=outcome, change=change, test=first, tried="" if first else tried))
    return result


def judged(fault: Fault, equivalent: list[dict[str, str]]) -> Fault:
    named = any((each["module"], each["change"]) == (fault.module, fault.change) for each in equivalent)
    return replace(fault, outcome="equivalent") if named and fault.outcome == "survived" else fault


def counts(faults: list[Fault]) -> dict[str, Any]:
    of = {name: sum(fault.outcome == name for fault in faults) for name in ("killed", "survived", "equivalent")}
    sound = of["killed"] + of["survived"]
    return {"planted": len(faults), **of, "score": of["killed"] / sound if sound else None}


def document(found: dict[str, list[Fault]], of: dict[str, int], command: str, most: int, seed: int) -> dict[str, Any]:
    """found: the sample of each room. of: how many faults there are."""
    return {
        "schema": "foresight.mutation", "version": 2, "environment": environment(command), "seed": seed,
        "most_of_a_room": most, "goal": GOAL,
        "rooms": {room: {"faults": of[room], **counts(faults)} for room, faults in found.items()},
        "modules": {
            module: counts([fault for fault in faults if fault.module == module])
            for faults in found.values() for module in sorted({fault.module for fault in faults})
        },
        "faults": [
            {key: value for key, value in asdict(fault).items() if key not in ("occurrence", "tried")}
            for faults in found.values() for fault in sorted(faults, key=lambda fault: (fault.module, fault.line))
        ],
    }  # fmt: skip


def page(whole: dict[str, Any], equivalent: list[dict[str, str]]) -> str:
    def table(name: str, rows: dict[str, Any], more: tuple[str, ...] = ()) -> list[str]:
        keys = (*more, "planted", "killed", "survived", "equivalent", "score")
        lines = [f"| {' | '.join((name, *keys))} |", f"|{'---|' * (len(keys) + 1)}"]
        for key, each in rows.items():
            share = "-" if each["score"] is None else f"{100 * each['score']:.0f} %"
            lines.append(f"| {' | '.join((key, *(str(each[count]) for count in keys[:-1]), share))} |")
        return lines

    where = whole["environment"]
    lines = [
        "# What the tests notice", "",
        f"`{where['command']}` (in a clone of the repository only; {where['date']}, {where['machine']}, ComfyUI "
        f"{where['comfyui']}) plants faults one at a time, and runs the tests that call the faulty function. Of all "
        f"faults that there are in a room a sample is planted, by the seed {whole['seed']}, from each module in "
        f"proportion. The goal is to notice {100 * whole['goal']:.0f} % of what is not equivalent. "
        "[mutation.json](mutation.json) names every fault, and the first test that failed.", "",
        *table("room", whole["rooms"], ("faults",)), "", *table("module", whole["modules"]), "",
    ]  # fmt: skip
    reasons = {(each["module"], each["change"]): each["why"] for each in equivalent}
    for outcome, title in (("survived", "Noticed by no test"), ("equivalent", "Equivalent")):
        chosen = [fault for fault in whole["faults"] if fault["outcome"] == outcome]
        lines += [f"## {title}", ""] if chosen else []
        for fault in chosen:
            why = reasons.get((fault["module"], fault["change"]), "") if outcome == "equivalent" else ""
            place = f"{fault['module']}, line {fault['line']} ({fault['operator'].removeprefix('core/')})"
            lines += [f"{place}: {why}".rstrip(), "", "```diff", fault["change"], "```", ""]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="dev.py mutate", description=__doc__.split("\n\n")[0])
    parser.add_argument("rooms", nargs="*", default=ROOMS, help="rooms and modules, as scoring or trials/cost.py")
    parser.add_argument("--most", type=int, default=40, help="faults of a room, or of a module that is named; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=40, help="that the tests of a fault may take")
    parser.add_argument("--out", type=Path, default=RESULTS)
    a = parser.parse_args(arguments)
    copy, out = copy_of(CACHE / "tree"), a.out.resolve()
    try:
        samples = {name: _sample(copy, name, a.most, a.seed) for name in a.rooms}
    except ValueError as error:
        parser.error(str(error))
    import_once()
    forks = Forks(copy)
    recorded = record(forks, copy, CACHE / "touched")
    equivalent = json.loads(EQUIVALENT.read_text(encoding="utf-8"))
    for name, chosen in samples.items():
        for done, fault in enumerate(chosen, 1):
            result = judged(plant(fault, forks, recorded, a.seconds, equivalent), equivalent)
            where = f"{fault.module}:{fault.line} {result.test}"
            print(f"{name} {done}/{len(chosen)}: {result.outcome}, {where}", flush=True)
        if name in ROOMS:
            _publish(copy, out, a.most, a.seed, equivalent)
        else:
            print(json.dumps(counts(_known(copy, chosen, equivalent)), indent=1))
    return 0


def _sample(root: Path, name: str, most: int, seed: int) -> list[Fault]:
    return sample([fault for each in modules(root, name) for fault in worth_planting(root, each)], most, seed)


def _known(root: Path, chosen: list[Fault], equivalent: list[dict[str, str]]) -> list[Fault]:
    return [judged(known, equivalent) for fault in chosen if (known := Kept(root, fault.module).of(fault))]


def _publish(root: Path, out: Path, most: int, seed: int, equivalent: list[dict[str, str]]) -> None:
    found, of = {}, {}
    for room in ROOMS:
        chosen = _sample(root, room, most, seed)
        if len(known := _known(root, chosen, equivalent)) == len(chosen):
            found[room], of[room] = known, len(_sample(root, room, 0, seed))
    whole = document(found, of, f"python dev.py mutate --most {most} --seed {seed}", most, seed)
    publish(out, "mutation", whole, page(whole, equivalent))


if __name__ == "__main__":
    sys.exit(main())
