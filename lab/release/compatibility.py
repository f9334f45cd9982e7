"""The table of docs/compatibility.md, from what the tests ran: ``python -m foresight.lab.release.compatibility``.

docs/results/compatibility.json is written by ``python dev.py test tests/test_compatibility.py --compatibility FILE``.
"""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "docs" / "results" / "compatibility.json", ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- compatibility: begin -->\n", "<!-- compatibility: end -->\n"


def section(path: Path = RESULTS) -> str:
    """A Markdown table: a row for each model, a column for each ComfyUI version; cells count tests that passed."""
    results = {version: ran["models"] for version, ran in json.loads(path.read_text(encoding="utf-8")).items()}
    versions = sorted(results, key=lambda version: [int(part) for part in version.split(".")])
    models = list(dict.fromkeys(model for version in versions for model in results[version]))
    lines = [
        "| model | " + " | ".join(f"ComfyUI {version}" for version in versions) + " |",
        "|---|" + "---|" * len(versions),
    ]
    for model in models:
        lines.append(f"| {model} | " + " | ".join(_cell(results[version].get(model)) for version in versions) + " |")
    return BEGIN + "\n".join(lines) + "\n" + END


def _cell(checks: dict[str, dict[str, str]] | None) -> str:
    if checks is None:
        return "not in this version"
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
