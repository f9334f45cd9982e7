"""The tables of docs/compatibility.md, from what the tests ran: ``python dev.py compatibility`` runs those and this.

docs/results/compatibility.json has a part for each version of ComfyUI. "families": family -> feature -> what a test of
it found, "works" or "refused: why", or how it ended. "models": model -> check -> sampler -> how its test ended.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "docs" / "results" / "compatibility.json", ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- compatibility: begin -->\n", "<!-- compatibility: end -->\n"
ABSENT = "not in this version"


def section(path: Path = RESULTS) -> str:
    """In Markdown: what works with each family of models, why the rest is refused, and what ran with each sampler."""
    ran = json.loads(path.read_text(encoding="utf-8"))
    versions = sorted(ran, key=lambda version: [int(part) for part in version.split(".")])
    parts = [*families({version: ran[version].get("families", {}) for version in versions}), "", *models(ran, versions)]
    return BEGIN + "\n".join(parts) + "\n" + END


def families(ran: dict[str, dict[str, dict[str, str]]]) -> list[str]:
    """ran: by version, the oldest first. A row for each family; where versions differ, a cell says which does what."""
    names, features = _all(ran.values()), _all(family for found in ran.values() for family in found.values())
    reasons: dict[str, int] = {}

    def short(outcome: str) -> str:
        kind, _, why = outcome.partition(": ")
        return f"{kind} ({reasons.setdefault(why, len(reasons) + 1)})" if why else kind

    rows = []
    for name in names:
        there = {version: found[name] for version, found in ran.items() if found.get(name)}
        cells = []
        for feature in features:
            said = {version: short(found.get(feature, "not tried")) for version, found in there.items()}
            alike = len(set(said.values())) == 1
            cells.append(next(iter(said.values())) if alike else "; ".join(": ".join(pair) for pair in said.items()))
        rows.append(_row(name, ", ".join(there), *cells))
    head = [_row("family", "ComfyUI", *features), "|---" * (len(features) + 2) + "|"]
    return [*head, *rows, "", "Why something is refused:", "", *(f"{n}. {why}" for why, n in reasons.items())]


def models(ran: dict[str, Any], versions: list[str]) -> list[str]:
    """A row for each model, a column for each version; cells count tests that passed."""
    results = {version: ran[version]["models"] for version in versions}
    head = [_row("model", *(f"ComfyUI {version}" for version in versions)), "|---" * (len(versions) + 1) + "|"]
    rows = (
        _row(name, *(_counted(results[version].get(name)) for version in versions)) for name in _all(results.values())
    )
    return ["With every sampler:", "", *head, *rows]


def _all(found: Any) -> list[str]:
    """The keys of all, each once, as they come."""
    return list(dict.fromkeys(key for each in found for key in each))


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _counted(checks: dict[str, dict[str, str]] | None) -> str:
    if checks is None:
        return ABSENT
    ran = [(check, sampler, outcome) for check, samplers in checks.items() for sampler, outcome in samplers.items()]
    failed = [f"{check} ({sampler})" for check, sampler, outcome in ran if outcome != "passed"]
    samplers = len({sampler for _, sampler, _ in ran})
    counted = f"{len(ran) - len(failed)} of {len(ran)} checks pass, {samplers} samplers"
    return counted + (f"; not: {', '.join(failed)}" if failed else "")


def main() -> None:
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(before + section() + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
