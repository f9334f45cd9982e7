"""Foreign text in log lines and messages: no console raises on it, whatever its encoding."""

from __future__ import annotations

import io
import logging
import re
import sys
import traceback
from types import SimpleNamespace

import house
import pytest
import torch

from foresight.l2r.model import check_latent
from foresight.nodes.back_ends import make_reworder
from foresight.nodes.folders import path_of
from foresight.nodes.loaders import load_converter
from foresight.sampling.injection import InjectionSettings
from foresight.sampling.monitor import MonitorSampler
from foresight.sampling.search_rules import parse_schedule
from foresight.scoring.detector import DetectorSettings
from foresight.scoring.preset import DetectorPreset
from foresight.trials.foreign import check_choice, logger, printable, quoted, writable

CHINESE, HALF = "一只猫，阳光明媚", "a cat \ud83d here"


class Console(logging.StreamHandler):
    """As ComfyUI's: an error of its stream gets out of logging, because its stderr is as strict as its stdout."""

    def __init__(self, encoding: str):
        self.bytes = io.BytesIO()
        super().__init__(io.TextIOWrapper(self.bytes, encoding=encoding, write_through=True))

    def handleError(self, record):
        raise sys.exc_info()[1]

    @property
    def text(self) -> str:
        return self.bytes.getvalue().decode(self.stream.encoding)


@pytest.fixture(params=["cp1252", "ascii", "utf-8", "cp932"])
def console(request, monkeypatch):
    console = Console(request.param)
    monkeypatch.setattr(logging.root, "handlers", [console])
    monkeypatch.setattr(logger, "level", logging.INFO)
    return console


@pytest.mark.parametrize("text", [CHINESE, HALF, "a 🎈 on café ‘walls’", "ﬁn\x85\u2028"])
def test_a_log_line_reaches_every_console(console, text):
    with pytest.raises(UnicodeEncodeError):
        console.emit(logging.LogRecord("core", 30, "", 0, "%s", (CHINESE + HALF,), None))
    logger.warning("Foresight: %s, %d", text, 7)
    assert "Foresight: " in console.text and console.text.rstrip().endswith(", 7")
    for char in text:
        try:
            char.encode(console.stream.encoding)
        except UnicodeEncodeError:
            continue
        assert char in console.text, "what the console can write stands as it is"


VALUES = [CHINESE, HALF, {"a": [CHINESE]}, "x" * 10_000, "line\nline \x1b[2J", [[[[[["deep"]]]]]]]


@pytest.mark.parametrize("value", VALUES)
def test_a_raised_message_can_be_logged_with_all_that_led_to_it(console, value):
    try:
        raise ValueError(f"name is {quoted(value)}, {printable(str(value))}: choose another.")
    except ValueError:
        message = traceback.format_exc()
    logging.root.error(message)
    told = str(sys.exc_info()[1] or message).splitlines()[-1]
    assert len(told) < 500 and "\x1b" not in told and "choose another" in told


def test_what_a_console_can_write_is_not_touched(monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])
    utf8 = SimpleNamespace(encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", utf8)
    monkeypatch.setattr(sys, "stderr", utf8)
    assert writable(f"{CHINESE}\n🎈") == f"{CHINESE}\n🎈"
    assert quoted(CHINESE) == f"'{CHINESE}'" and quoted(None) == "None"
    assert writable(HALF) == "a cat \\ud83d here", "no encoding has half an emoji"


def test_a_value_of_any_depth_is_quoted():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert len(quoted(deep)) < 30


class Unwritable:
    def __repr__(self):
        raise ValueError("no")


def test_a_value_that_python_itself_does_not_write_is_quoted():
    huge = 10**5000
    for value in (huge, -huge, [huge], {huge: {1: huge}}, Unwritable(), {Unwritable()}):
        assert 0 < len(quoted(value)) < 150
    assert quoted(huge) == "<an integer of 16610 bits>" and quoted(10**9) == "1000000000"


@pytest.mark.parametrize("odd", [SimpleNamespace(), *(SimpleNamespace(encoding=odd) for odd in ("no such", 7)), None])
def test_a_console_of_somebody_elses_making_breaks_nothing(monkeypatch, odd):
    monkeypatch.setattr(sys, "stdout", odd)
    assert writable("a cat") == "a cat" and writable(CHINESE + HALF)


def test_only_one_module_makes_a_logger():
    """A log line elsewhere would not be made writable."""
    runtime = ("nodes", "sampling", "panel", "refiner", "scoring", "l2r", "trials", "demo", "files")
    modules = [path for path in house.files(house.ROOT) if path.parts[0] in runtime]
    sources = {path.as_posix(): (house.ROOT / path).read_text(encoding="utf-8") for path in modules}
    makers = [name for name, source in sources.items() if re.search(r"\blogging\b|\bprint\(|\bwarnings\b", source)]
    assert makers == ["trials/foreign.py"]


@pytest.mark.parametrize("value", [*VALUES, "../" + "x" * 5000, 7, None])
@pytest.mark.parametrize("choice", [
    lambda value: check_choice("sampler_name", value, ["euler", CHINESE + "2"]),
    lambda value: check_choice("precision", value, {"fp32": 1}),
    lambda value: load_converter(str(value), None),
    lambda value: path_of("foresight_l2r", str(value)),
    lambda value: make_reworder(value, None),
    lambda value: make_reworder("endpoint", None, endpoint=value),
    lambda value: DetectorPreset(str(value), 50, DetectorSettings()).check("another"),
    lambda value: MonitorSampler(None, stop=value),
    lambda value: InjectionSettings(mask=value),
    lambda value: parse_schedule(f"1, {value}x", 50),
    lambda value: parse_schedule("1" * 5000 if value is None else f"{value} 2", 50),
    lambda value: check_latent(torch.zeros(1), SimpleNamespace(name=value, channels=4)),
])  # fmt: skip
def test_no_value_of_a_workflow_is_echoed_raw(console, choice, value):
    """Whatever a combo, a file's name or a widget's text holds, its refusal can be logged and names a way out."""
    with pytest.raises(ValueError) as refused:
        choice(value)
    logging.root.error("".join(traceback.format_exception(refused.value)))
    assert len(str(refused.value)) < 2500 and "\x1b" not in str(refused.value)
