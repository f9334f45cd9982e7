"""The paper's tables and figures from the database that `run` has made.

    python -m foresight.evaluation report out/evidence --out out/evidence

Writes evidence.md, evidence.json, evidence.html (one page that needs nothing else, with clips), and into the folder
evidence beside them each table as CSV and each figure as PNG and CSV. A table whose methods were not run says which are
missing. Where the folder holds ceiling.json (`python -m foresight.evaluation ceiling --out` the same folder), it is
shown as well.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..trials.report import safe
from .evidence import Evidence, load
from .report_ceiling import beside_ceiling, read_ceiling
from .report_ceiling import markdown as ceiling_page
from .report_claims import claims, diversity, motion, proxies, repairs, table_s7
from .report_cost import equal_nfe
from .report_figures import draw
from .report_page import markdown, page, write_csv
from .report_tables import (
    Table,
    detectors,
    foresight,
    table_1,
    table_s2,
    table_s4,
    table_s5,
    table_s6,
    table_s6_predicted,
)
from .report_yield import figure_yield, race_at_equal_cost, yields
from .results import command_parser
from .store import StoreError

MAKERS = (
    yields, race_at_equal_cost,
    table_1, equal_nfe, repairs, foresight, table_s2, detectors, table_s4, table_s5, table_s6, table_s6_predicted,
    table_s7, motion, diversity, proxies,
)  # fmt: skip


def all_tables(evidence: Evidence) -> list[Table]:
    """The judgement first: it is what most readers want."""
    tables = [make(evidence) for make in MAKERS]
    return [claims(evidence, tables), *tables]


def document(evidence: Evidence, tables: Sequence[Table], ceiling: dict[str, Any] | None) -> dict[str, Any]:
    base = evidence.base
    return {
        "schema": "foresight.evidence", "version": 1,
        "environment": {key: evidence.meta[key] for key in ("command", "started", "machine", "versions")},
        "settings": evidence.settings,
        "runs": {"base": len(base), "prompts": len(set(base.prompt.tolist())), "good": float((~base.failed).mean()),
                 "judged": base.judged, **{name: len(rows) for name, rows in evidence.rows.items() if name != "base"}},
        "tables": {t.name: {"title": t.title, "rows": t.rows, "missing": t.missing} for t in tables},
        "ceiling": ceiling and ceiling["summary"],
    }  # fmt: skip


def write(evidence: Evidence, folder: Path) -> list[Table]:
    """All files of the report: pages into `folder`, tables and figures into `folder`/evidence."""
    ceiling = read_ceiling(folder)
    # Raises for a database of which no report can be made, before anything is written.
    tables = [beside_ceiling(table, ceiling) for table in all_tables(evidence)]
    parts = folder / "evidence"
    parts.mkdir(parents=True, exist_ok=True)
    for table in tables:
        write_csv(table, parts)
    drawn = draw(evidence, {table.name: table for table in tables}, parts)
    if headline := figure_yield(evidence, parts):
        drawn = {"Good clips against model evaluations": headline} | drawn
    figures = {title: f"{parts.name}/{name}" for title, name in drawn.items()}
    whole = json.dumps(safe(document(evidence, tables, ceiling)), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "evidence.json").write_text(whole + "\n", encoding="utf-8")
    text = markdown(evidence, tables, figures, ceiling and ceiling_page(ceiling))
    (folder / "evidence.md").write_text(text, encoding="utf-8")
    (folder / "evidence.html").write_text(page(evidence, tables, figures, folder, bool(ceiling)), encoding="utf-8")
    return tables


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser("report", __doc__)
    parser.add_argument("database", type=Path, help="the database of `run`, or its folder")
    parser.add_argument("--out", type=Path, help="folder for the report (default: that of the database)")
    parser.add_argument("--settings", help="fingerprint of the runs' settings, where the database holds several")
    a = parser.parse_args(argv)
    try:
        evidence = load(a.database, a.settings)
        folder = a.out or evidence.path.parent
        tables = write(evidence, folder)
    except (StoreError, ValueError, OSError) as error:
        raise SystemExit(f"report: {error}") from None
    missing = [f"{table.title}: {table.missing}" for table in tables if table.missing]
    whole, parts = folder / "evidence.html", folder / "evidence"
    print("\n".join([*missing, f"{whole} shows all; Markdown and JSON are beside it, CSV and PNG in {parts}."]))


if __name__ == "__main__":
    main()
