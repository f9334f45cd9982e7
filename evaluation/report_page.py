"""The evidence report for people: Markdown, CSV, and one HTML page that needs nothing else, with the clips."""

from __future__ import annotations

import base64
import csv
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .evidence import Evidence
from .report_tables import Table
from .results import shown
from .store import Store

EXAMPLES = 3  # of each kind of run, with all its clips
SHOWN = ("base", "efdi", "reseed", "regenerate", "best_of_3")

STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; } th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left; }
th { background: var(--soft); } img { max-width: 100%; } .plot { background: white; padding: .5rem; }
.clips { display: flex; flex-wrap: wrap; gap: .8rem; } figure { margin: 0; width: 132px; font-size: 12px; }
figure img { width: 128px; image-rendering: pixelated; } .holds { color: #18794e; } .fails { color: #b42318; }
"""


def markdown_table(table: Table) -> list[str]:
    lines = [f"## {table.title}", ""]
    if table.rows:
        headings = [heading for heading, _ in table.columns.values()]
        lines += [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
        lines += [
            f"| {' | '.join(shown(row.get(key), kind).replace('|', '/') for key, (_, kind) in table.columns.items())} |"
            for row in table.rows
        ]
        lines.append("")
    return lines + [f"{text}\n" for text in (table.note, table.missing) if text]


def write_csv(table: Table, folder: Path) -> None:
    """A cell becomes three columns: its value, low and high."""
    parts = [(key, part) for key in table.columns for part in _parts(table, key)]
    with (folder / f"{table.name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([key + (f"_{part}" if part not in ("", "value") else "") for key, part in parts])
        for row in table.rows:
            writer.writerow([_part(row.get(key), part) for key, part in parts])


def _parts(table: Table, key: str) -> tuple[str, ...]:
    return ("value", "low", "high") if any(isinstance(row.get(key), dict) for row in table.rows) else ("",)


def _part(value: Any, part: str) -> Any:
    if isinstance(value, dict):
        return value[part]
    return value if part in ("", "value") else ""


def heading(evidence: Evidence) -> list[str]:
    """What was measured, how and where."""
    base, meta, settings = evidence.base, evidence.meta, evidence.settings
    judged = "the judge" if base.judged else f"a final score of at least tau ({evidence.tau:g})"
    prompts = len(set(base.prompt.tolist()))
    machine = meta["machine"] if isinstance(meta["machine"], str) else ", ".join(map(str, meta["machine"].values()))
    versions = ", ".join(f"{name} {version}" for name, version in meta["versions"].items())
    lines = [
        f"{len(base)} plain runs of {prompts} prompts (suite {settings.get('suite')}, model {settings.get('model')}), "
        f"{base.steps} steps; methods: {', '.join(evidence.methods)}. A clip is good by {judged}; "
        f"{100 * (~base.failed).mean():.1f} % are. Made by `{meta['command']}`, {meta['started'][:10]}, "
        f"{machine}, {versions}. Values in brackets: 95 % intervals from a "
        "bootstrap over prompts; differences are paired by prompt and seed.",
    ]  # fmt: skip
    if evidence.other_fingerprints:
        lines.append(f"The database also holds runs of {evidence.other_fingerprints} other settings, left out here.")
    return lines


def markdown(evidence: Evidence, tables: Sequence[Table], figures: dict[str, str], ceiling: str | None) -> str:
    lines = ["# Evidence", "", *(f"{line}\n" for line in heading(evidence))]
    for table in tables:
        lines += markdown_table(table)
    for title, name in figures.items():
        lines += [f"## {title}", "", f"![]({name})", ""]
    if ceiling:
        lines += [ceiling.replace("# ", "## ", 1)]
    return "\n".join(lines)


def html_table(table: Table) -> str:
    parts = [f"<h2>{html.escape(table.title)}</h2>"]
    if table.rows:
        head = "".join(f"<th>{html.escape(name)}</th>" for name, _ in table.columns.values())
        body = "".join(
            "<tr>" + "".join(_cell(shown(row.get(key), kind)) for key, (_, kind) in table.columns.items()) + "</tr>"
            for row in table.rows
        )
        parts.append(f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>')
    parts += [f"<p>{html.escape(text)}</p>" for text in (table.note, table.missing) if text]
    return "\n".join(parts)


def _cell(text: str) -> str:
    kind = {"holds": ' class="holds"', "does not hold": ' class="fails"'}.get(text, "")
    return f"<td{kind}>{html.escape(text)}</td>"


def examples(evidence: Evidence) -> dict[str, list[tuple[int, int]]]:
    """Kind of run -> (prompt_index, seed) of a few, the same in every report of this database."""
    kinds: dict[str, list[tuple[int, int]]] = {
        "Rejected and repaired": [], "Rejected, not repaired": [], "Good, rejected all the same": [],
        "Failed and not seen": [], "Good and passed": [],
    }  # fmt: skip
    base = evidence.rows["base"]
    for key, row in evidence.rows.get("efdi", base).items():
        if key not in base:
            continue
        was, now = evidence.good(base[key]), evidence.good(row)
        if row["accepted"]:
            kind = "Good and passed" if was else "Failed and not seen"
        else:
            failed = "Rejected and repaired" if now else "Rejected, not repaired"
            kind = "Good, rejected all the same" if was else failed
        if len(kinds[kind]) < EXAMPLES:
            kinds[kind].append(key)
    return {kind: keys for kind, keys in kinds.items() if keys}


def clips_html(evidence: Evidence) -> str:
    """The clips of those runs, inlined."""
    parts = ["<h2>Clips</h2>"]
    with Store(evidence.path) as store:
        for kind, keys in examples(evidence).items():
            runs = []
            for key in keys:
                pictures = [
                    _clip(method, row, data) for method in SHOWN
                    if (row := evidence.rows.get(method, {}).get(key)) and (data := store.clip(row))
                ]  # fmt: skip
                if pictures:
                    prompt = html.escape(evidence.rows["base"][key]["prompt"][:300])
                    runs.append(f'<p>{prompt} (seed {key[1]})</p><div class="clips">{"".join(pictures)}</div>')
            if runs:
                parts += [f"<h3>{kind}</h3>", *runs]
    return "\n".join(parts) if len(parts) > 1 else "<p>No clips were kept in this database.</p>"


def _clip(method: str, row: dict[str, Any], data: bytes) -> str:
    judged = "" if row["right"] is None else ", good" if row["right"] else ", failed"
    score = "" if row["final_score"] is None else f", score {row['final_score']:.3f}"
    trial = f", Trial {row['trial']}" if method == "efdi" else ""
    text = html.escape(f"{method}{trial}{judged}{score}")
    return f'<figure><img alt="" src="{_inline(data, "webp")}"><figcaption>{text}</figcaption></figure>'


def _inline(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def page(evidence: Evidence, tables: Sequence[Table], figures: dict[str, str], folder: Path, ceiling: bool) -> str:
    plots = dict(figures)
    if ceiling and (folder / "ceiling.png").exists():
        plots["How early can the outcome be known? (ceiling by re-branching)"] = "ceiling.png"
    parts = [f"<p>{html.escape(line)}</p>" for line in heading(evidence)] + list(map(html_table, tables))
    for title, name in plots.items():
        data = _inline((folder / name).read_bytes(), "png")
        parts.append(f'<h2>{html.escape(title)}</h2><img class="plot" alt="" src="{data}">')
    parts.append(clips_html(evidence))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Foresight: evidence</title><style>{STYLE}</style><h1>Evidence</h1>\n"
        + "\n".join([*parts, "</html>\n"])
    )
