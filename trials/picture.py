"""A run report as a picture: a race's candidates side by side, or score curves and filmstrips of the trials; a table.

Drawn with matplotlib's objects on an Agg canvas; pyplot and its global state stay out of the server process. It is
imported when a picture is drawn: where it is missing, or stumbles over its own settings (an MPLBACKEND left over from a
notebook), the picture says so and everything else goes on.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from .foreign import logger, printable
from .summary import RULES, below, columns, final_score, headline, race_rules, rows, score, totals

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT, _DPI = 1200, 800, 100  # pixels
_COLOURS = {"0": "#2563ab", "1": "#d97706", "2": "#15803d", "2->1": "#8b3fa8"}
_VIDEO_WINDOW, _FRAME_WINDOW, _INK, _FAINT = "#cfe0f3", "#fbe5c8", "#1f2933", "#8a94a0"
_DELIVERED = "#15803d"
_FRAMES = 6  # of a filmstrip
_CARDS, _ROWS = 6, 9  # candidates of a race that are pictured, and that have a row of the table
# Widths of the table's columns.
_TRIAL_WIDTHS = (0.08, 0.2, 0.13, 0.11, 0.1, 0.2, 0.09, 0.09)
_RACE_WIDTHS = (0.1, 0.19, 0.12, 0.16, 0.09, 0.2, 0.06, 0.08)
_LINE = 165  # characters of a prompt line


def report_figure(report: dict[str, Any], previews: Mapping[str, Any], clip: Any = None) -> np.ndarray:
    """[800, 1200, 3] uint8 RGB.

    report: what trials.report.run_report gives. previews: trial -> [F, H, W, 3], uint8 or float in 0..1, an array or a
    CPU tensor; trials without one, or with what is no clip, are left out. clip: the finished one's frames, where
    they are known, or a list of each item's. Without matplotlib it is an empty page that says so.
    """
    return _drawn(lambda figure: _page(figure, report, cards(report, previews, clip)))


def _page(figure: Figure, report: dict[str, Any], shown: list[Card]) -> None:
    bottom = _table(figure, report)
    top = _header(figure, report)
    if report["candidates"]:
        _row(figure, shown, bottom + 0.03, top)
    else:
        _curves(figure.add_axes((0.06, bottom + 0.085, 0.53 if shown else 0.91, top - bottom - 0.11)), report)
        _filmstrips(figure, shown, bottom + 0.03, top)


def _is_clip(frames: Any) -> bool:
    """Whether it is [F, H, W, 3 or more] and none of them 0: a converter of another pack may give anything."""
    shape = getattr(frames, "shape", ())
    return len(shape) == 4 and all(shape) and shape[-1] >= 3


def clips_figure(text: str, shown: list[Card]) -> np.ndarray:
    """[800, 1200, 3] uint8 RGB: clips side by side under the lines of a text."""
    return _drawn(lambda figure: _text_and_clips(figure, text, shown))


def _text_and_clips(figure: Figure, text: str, shown: list[Card]) -> None:
    lines = text.splitlines()[:12]
    _text(figure, 0.025, 0.978, "\n".join(textwrap.shorten(line, _LINE) for line in lines), linespacing=1.35)
    _row(figure, [each for each in shown if _is_clip(each.frames)][:_CARDS], 0.03, 0.94 - 0.0225 * len(lines))


def _drawn(draw: Callable[[Figure], None]) -> np.ndarray:
    """What a function draws on an empty page; without matplotlib the page says so."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except Exception as error:  # its settings are read on import, and a wrong one raises whatever matplotlib likes
        return _undrawn(f"matplotlib cannot be loaded ({printable(f'{type(error).__name__}: {error}')})")
    figure = Figure(figsize=(_WIDTH / _DPI, _HEIGHT / _DPI), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    draw(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _undrawn(why: str) -> np.ndarray:
    """The picture where none can be drawn."""
    logger.warning("Foresight: the picture of the run report was not drawn: %s.", why)
    page = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    lines = textwrap.wrap(f"No picture: {why}. The report's text and JSON are whole.", 150)
    ImageDraw.Draw(page).multiline_text((30, 30), "\n".join(lines).encode("ascii", "replace").decode(), fill="black")
    return np.array(page)


def _text(figure: Figure, x: float, y: float, text: str, **style):
    # parse_math off: a prompt with two dollar signs is not a formula.
    return figure.text(x, y, text, parse_math=False, va="top", **{"color": _INK, "fontsize": 9.5, **style})


def _wrapped(label: str, text: str, lines: int = 2) -> list[str]:
    return textwrap.wrap(f"{label}: {text}", _LINE, max_lines=lines, placeholder=" ...", subsequent_indent="    ")


def _header(figure: Figure, report: dict[str, Any]) -> float:
    """Draws outcome and prompts; gives the y where they end."""
    title = textwrap.wrap(headline(report), 96, max_lines=2)
    _text(figure, 0.025, 0.978, "\n".join(title), fontsize=15, fontweight="bold")
    lines = _wrapped("Prompt", report["prompt"] or "-")
    lines += textwrap.wrap(race_rules(report), _LINE) if report["candidates"] else []
    if report["refined_prompt"] not in (None, report["prompt"]):
        lines += _wrapped("Refined", report["refined_prompt"])
    line_height = 0.0225
    top = 0.932 - 0.032 * (len(title) - 1)
    _text(figure, 0.025, top, "\n".join(lines), linespacing=1.35)
    return top - line_height * len(lines) - 0.035


def _curves(axes, report: dict[str, Any]) -> None:
    settings = report["settings"]
    tau, last = settings.get("tau"), 1
    for key, colour, label in (
        ("video_window", _VIDEO_WINDOW, "decision window, video"),
        ("single_frame_window", _FRAME_WINDOW, "decision window, single frame"),
    ):
        probed = any(trial["kind"] == "probe" for trial in report["trials"])
        if window := settings.get(key) if key == "video_window" or probed else None:
            axes.axvspan(window[0] - 0.5, window[1] + 0.5, color=colour, lw=0, label=label)
            last = max(last, window[1])
    levels = [] if tau is None else [tau]
    for trial in report["trials"]:
        verdict = trial["verdict"]
        if not verdict or not verdict["trace"]:
            continue
        steps, scores = np.array(verdict["trace"], dtype=float).T  # None becomes nan, which leaves a gap
        colour, dashes = _COLOURS[trial["trial"]], "--" if trial["kind"] == "probe" else "-"
        axes.plot(steps, scores, dashes, color=colour, lw=1.8, marker=".", ms=4, label=_curve_label(trial))
        levels += scores[np.isfinite(scores)].tolist()
        last = max(last, steps[-1])
        if verdict["stop_step"] is not None and verdict["predicted_score"] is not None:
            marker = "o" if verdict["accepted"] else "X"
            axes.plot(
                verdict["stop_step"], verdict["predicted_score"], marker, color=colour, ms=11, mec="white", mew=1.2
            )
    if tau is not None:
        axes.axhline(tau, color=_INK, lw=1, ls=":", label=f"tau {tau:g}")
    if levels:
        low, high = min(levels), max(levels)
        spread = max(high - low, 0.02)
        axes.set_ylim(low - 0.12 * spread, high + 0.75 * spread)  # room for the legend
    axes.set_xlim(0.4, last + 0.6)
    axes.set_xlabel("step", fontsize=9)
    axes.set_ylabel("alignment score of the preview", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", fontsize=8, frameon=False, ncols=2 if last > 1 else 1, borderaxespad=0.2)
    if not any(trial["verdict"] and trial["verdict"]["trace"] for trial in report["trials"]):
        axes.text(0.5, 0.4, "not inspected", transform=axes.transAxes, ha="center", color=_FAINT, fontsize=12)


def _curve_label(trial: dict[str, Any]) -> str:
    verdict = trial["verdict"]
    return f"Trial {trial['trial']}{' single frame' * (trial['kind'] == 'probe')}: {RULES[verdict['rule']]}"


class Said(str):
    """A text, and the template and values it was made of: a page says it in its own language (web/reports.js)."""

    template: str
    values: dict[str, object]

    @property
    def parts(self) -> list:
        """[template, values], and values that are such texts alike."""
        return [self.template, {name: getattr(value, "parts", value) for name, value in self.values.items()}]


def said(template: str, **values: object) -> Said:
    text = Said(template.format(**values))
    text.template, text.values = template, values
    return text


@dataclass(frozen=True)
class Card:
    """A clip beside the others: its name, what is said of it, its frames [F, H, W, 3], whether it is what is delivered
    (which is framed), and its colour where it is not."""

    name: str
    about: str
    frames: Any
    finished: bool = False
    colour: str = _INK

    @property
    def ink(self) -> str:
        return _DELIVERED if self.finished else self.colour


def cards(report: dict[str, Any], previews: Mapping[str, Any], clip: Any = None) -> list[Card]:
    """The finished clip, item by item, and beside it what was left for it: the looks of a race's best candidates, or
    the previews of the trials. Arguments: as report_figure's."""
    clips = list(clip) if isinstance(clip, (list, tuple)) else [clip]
    finals = report["final_scores"] or [report["final_score"]]
    finished = []
    for i, frames in enumerate(clips):
        name = said("the finished clip, item {number}", number=i + 1) if len(clips) > 1 else said("the finished clip")
        final = finals[i] if i < len(finals) else None
        if _is_clip(frames):
            finished.append(Card(name, "" if final is None else _final(report, final), frames, True))
    previews = {trial: preview for trial, preview in previews.items() if _is_clip(preview)}
    return finished + (_looks if report["candidates"] else _previews)(report, previews, bool(finished))


def _final(report: dict[str, Any], final: float) -> Said:
    of = said("by its frames") if report["final_score_of"] == "frames" else said("by its preview")
    values = {"score": score(final), "tau": score(report["settings"].get("tau")), "of": of}
    if below(report, final):
        return said("final score {score}, still below tau {tau} ({of})", **values)
    return said("final score {score} ({of})", **values)


def _looks(report: dict[str, Any], previews: Mapping[str, Any], finished: bool) -> list[Card]:
    known = [row for row in report["candidates"] if f"candidate {row['candidate']}" in previews]
    first = [row for row in known if row["state"] == "delivered"]
    best = sorted(known, key=lambda row: -2 if row["score"] is None else row["score"], reverse=True)
    made = []
    for row in sorted((first + [row for row in best if row not in first])[:_CARDS], key=lambda row: row["candidate"]):
        number, won = row["candidate"], row["state"] == "delivered"
        name = (said("candidate {number}, delivered", number=number) if won else
                said("candidate {number}", number=number))  # fmt: skip
        about = at_look = score(row["score"])
        if row["floor"] is not None:
            about = said("{score}, floor {floor}", score=at_look, floor=score(row["floor"]))
        made.append(Card(name, about, previews[f"candidate {number}"], won and not finished))
    return made


def _previews(report: dict[str, Any], previews: Mapping[str, Any], finished: bool) -> list[Card]:
    sources = {trial["trial"]: trial for trial in report["trials"] if trial["kind"] in ("sample", "probe")}
    made = []
    for trial, frames in previews.items():
        source, about = sources.get(trial), ""
        frame = source and source["kind"] == "probe"
        name = said("Trial {trial}, single frame", trial=trial) if frame else said("Trial {trial}", trial=trial)
        if source and source["verdict"] and source["verdict"]["stop_step"] is not None:
            about = said("preview at step {step}", step=source["verdict"]["stop_step"])
        made.append(Card(name, about, frames, colour=_COLOURS.get(trial, _INK)))
    return made


def _row(figure: Figure, shown: list[Card], bottom: float, top: float) -> None:
    """Side by side, what is delivered framed."""
    width = 0.95 / max(2, len(shown))
    for place, card in enumerate(shown):
        x = 0.025 + place * width
        chars = int(150 * width)  # as many as fit beside the next card
        about = textwrap.wrap(card.about, chars, max_lines=2, placeholder=" ...")
        _text(figure, x, top, textwrap.shorten(card.name, chars), color=card.ink, fontweight="bold")
        _text(figure, x, top - 0.023, "\n".join(about), color=card.ink)
        axes = _strip(figure, card.frames, (x, bottom, width - 0.015, top - bottom - 0.075))
        if card.finished:
            axes.set_axis_on()
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(color=_DELIVERED, linewidth=4)


def _strip(figure: Figure, frames: Any, box: tuple[float, float, float, float]):
    axes = figure.add_axes(box)
    axes.imshow(_filmstrip(frames, box[2] * _WIDTH / (box[3] * _HEIGHT)), aspect="equal")
    axes.set_anchor("NW")
    axes.set_axis_off()
    return axes


def _filmstrips(figure: Figure, shown: list[Card], bottom: float, top: float) -> None:
    height = (top - bottom) / max(2, len(shown))
    for place, card in enumerate(shown):
        y = top - place * height
        title = ", ".join(filter(None, (card.name, card.about)))
        _text(figure, 0.625, y, title, fontsize=9, color=card.ink, fontweight="bold")
        _strip(figure, card.frames, (0.625, y - height + 0.012, 0.35, height - 0.038))


def _filmstrip(preview: Any, aspect: float) -> np.ndarray:
    """[H', W', 3] uint8: up to _FRAMES frames, evenly spread, in the rows that fill a box of this aspect best."""
    frames = np.asarray(preview)[..., :3]
    frames = frames[np.unique(np.linspace(0, len(frames) - 1, _FRAMES).round().astype(int))]
    if frames.dtype != np.uint8:
        frames = (np.nan_to_num(frames).clip(0, 1) * 255).round().astype(np.uint8)
    count, height, width, _ = frames.shape
    columns = max(range(1, count + 1), key=lambda n: min(aspect / (n * width), 1 / (-(-count // n) * height)))
    gap = max(1, width // 32)
    sheet = np.full((-(-count // columns) * (height + gap), columns * (width + gap), 3), 255, np.uint8)
    for i, frame in enumerate(frames):
        y, x = i // columns * (height + gap), i % columns * (width + gap)
        sheet[y : y + height, x : x + width] = frame
    return sheet[:-gap, :-gap]


def _table(figure: Figure, report: dict[str, Any]) -> float:
    """Draws the trials or candidates and the totals at the bottom; gives the y where they begin."""
    cells, raced = rows(report), bool(report["candidates"])
    if len(cells) > _ROWS:
        won = next(i for i, row in enumerate(report["candidates"]) if row["state"] == "delivered")
        shown = sorted({won, *[i for i in range(_ROWS) if i != won][: _ROWS - 2]})
        cells = [*(cells[i] for i in shown), (f"{len(cells) - len(shown)} more", *[""] * (len(cells[0]) - 1))]
    row_height, base = 0.031, 0.028
    for note in textwrap.wrap("; ".join(report["notes"]), 185, max_lines=1, placeholder=" ..."):
        _text(figure, 0.025, base + 0.005, note, fontsize=8.5, color="#a33a1f")
        base += 0.024
    final = f"   Final score {final_score(report)}" if report["final_score"] is not None else ""
    _text(figure, 0.025, base + 0.01, totals(report) + final, fontsize=10, fontweight="bold")
    height = row_height * (len(cells) + 1)
    axes = figure.add_axes((0.025, base + 0.022, 0.95, height))
    axes.set_axis_off()
    table = axes.table(
        cellText=cells, colLabels=columns(report), bbox=(0, 0, 1, 1), cellLoc="left", colLoc="left", edges="horizontal",
        colWidths=_RACE_WIDTHS if raced else _TRIAL_WIDTHS,
    )  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    for (row, column), cell in table.get_celld().items():
        cell.set_edgecolor("#d8dee4")
        ink = _FAINT if row == 0 else _INK
        if raced and row and "delivered" in cells[row - 1][5]:
            ink = _DELIVERED
        elif not raced and row and column == 0:
            ink = _COLOURS[cells[row - 1][0]]
        cell.get_text().set_color(ink)
    return base + 0.022 + height
