"""The report's picture as it is laid out: all of it on the page, nothing on anything else, and what the curves show."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from test_picture import ASIDE, FULL, PASSED, PLAIN, UNSEEN, raced, report, tried

from foresight.trials import picture
from foresight.trials.picture import Card, cards
from foresight.trials.summary import RULES

CLIP = np.full((9, 30, 48, 3), 0.5)
LONG = "a very long prompt of many words that go on and on " * 30


def drawn(draw):
    figure = Figure(figsize=(12, 8), dpi=100)
    FigureCanvasAgg(figure)
    draw(figure)
    figure.canvas.draw()
    return figure


def page(document, *previews, clip=None):
    given = dict.fromkeys(previews, CLIP)
    return drawn(lambda figure: picture._page(figure, document, cards(document, given, clip)))


def boxes(figure):
    """Of every text and every picture or table: left, bottom, right, top in pixels."""
    renderer = figure.canvas.get_renderer()
    found = [(text.get_text(), text.get_window_extent(renderer)) for text in figure.texts if text.get_text()]
    for axes in figure.axes:
        pictured = axes.images[0] if axes.images else None
        found.append((repr(axes), (pictured or axes).get_window_extent() if pictured else axes.get_tightbbox(renderer)))
    return found


MANY = [tried(n, "put aside", 0.1) for n in range(1, 40)] + [tried(40, "delivered", 0.3)]
PAGES = {
    "passed": lambda: page(report(PASSED)),
    "passed, with its clip": lambda: page(report(PASSED), "0", clip=CLIP),
    "all trials": lambda: page(report(FULL), "0", "1", "2", "2->1"),
    "all trials, long prompts": lambda: page(report(FULL, prompt=LONG), "0", "1", "2", "2->1", clip=CLIP),
    "unseen": lambda: page(report(UNSEEN)),
    "a race": lambda: page(raced(ASIDE, tried(2, "delivered", 0.3)), "candidate 1", "candidate 2", clip=CLIP),
    "a race of many": lambda: page(raced(*MANY, prompt=LONG), "candidate 1", "candidate 40", "candidate 2"),
    "a race without pictures": lambda: page(raced(ASIDE, tried(2, "delivered", 0.3))),
    "clips under a text": lambda: drawn(
        lambda figure: picture._text_and_clips(figure, "\n".join([LONG] * 20), [Card("one", LONG, CLIP)] * 3)
    ),
}


@pytest.mark.parametrize("name", PAGES)
def test_all_is_on_the_page_and_nothing_covers_anything(name):
    placed = boxes(PAGES[name]())
    for what, box in placed:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= 1200 and box.y1 <= 800, what
        assert box.width > 5 and box.height > 5, what
    for (one, a), (other, b) in itertools.combinations(placed, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(across) <= 2, f"{one} covers {other}: {across}"


def texts(figure):
    return "\n".join(text.get_text() for text in figure.texts)


def test_the_header_names_the_refined_prompt_where_there_is_another():
    assert "Refined: (a blue square:1.3)" in texts(page(report(FULL)))
    assert "Refined" not in texts(page(report(PASSED)))


def test_twelve_lines_stand_over_clips():
    lines = [f"line {n}" for n in range(20)]
    figure = drawn(lambda figure: picture._text_and_clips(figure, "\n".join(lines), [Card("one", "", CLIP)]))
    assert figure.texts[0].get_text().splitlines() == lines[:12]


def curves(records, **settings):
    figure = page(report(records, **settings))
    (axes,) = (axes for axes in figure.axes if axes.get_xlabel() == "step")
    legend = axes.get_legend()
    return axes, [text.get_text() for text in legend.get_texts()] if legend else []


def test_curves_show_the_traces_the_windows_and_tau():
    axes, legend = curves(FULL)
    assert legend[:2] == ["decision window, video", "decision window, single frame"] and legend[-1] == "tau 0.22"
    assert legend[2] == f"Trial 0: {RULES['early_reject']}" and "Trial 1 single frame: " in legend[3]
    drawn_traces = [line.get_xydata() for line in axes.lines if len(line.get_xdata()) > 2]
    for record, trace in zip((FULL[0], FULL[1], FULL[3], FULL[4]), drawn_traces, strict=True):
        assert np.allclose(trace, record.items[0].trace)
    marks = [line for line in axes.lines if len(line.get_xdata()) == 1]
    assert [(*line.get_xdata(), *line.get_ydata(), line.get_marker()) for line in marks] == [
        (11, 0.18, "X"), (24, 0.19, "X"), (14, 0.2, "X"), (24, 0.26, "o"),
    ]  # fmt: skip
    spans = [patch.get_extents().transformed(axes.transData.inverted()) for patch in axes.patches]
    assert [(round(span.x0, 3), round(span.x1, 3)) for span in spans] == [(7.5, 14.5), (19.5, 30.5)]
    assert axes.get_xlim() == (0.4, 30.6)


@pytest.mark.parametrize("tau", [0.05, 0.9])
def test_tau_is_within_the_curves_wherever_it_is(tau):
    axes, legend = curves(PASSED, tau=tau)
    low, high = axes.get_ylim()
    assert low < tau < high and low < 0.2 < 0.27 < high and f"tau {tau:g}" in legend
    assert "decision window, single frame" not in legend, "nothing was probed"


def test_without_a_window_or_a_trace_nothing_is_claimed():
    axes, legend = curves(PLAIN, tau=None, video_window=None)
    assert legend == [] and [text.get_text() for text in axes.texts] == ["not inspected"]
    axes, _ = curves(PASSED)
    assert not axes.texts


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_a_filmstrip_fills_its_box_as_well_as_any_arrangement(count):
    frames = np.zeros((count, 32, 32, 3), np.uint8)
    for aspect in (0.15, 0.4, 0.7, 1.0, 1.4, 2.2, 4.0, 9.0):
        sheet = picture._filmstrip(frames, aspect)
        assert (sheet == 0).all(-1).sum() == min(count, 6) * 32 * 32, "every frame is there"
        shown = min(count, 6)
        fits = [min(aspect / (n * 33 - 1), 1 / (-(-shown // n) * 33 - 1)) for n in range(1, shown + 1)]
        assert min(aspect / sheet.shape[1], 1 / sheet.shape[0]) >= 0.98 * max(fits)
