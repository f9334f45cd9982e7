"""A megabyte of anything as a model's answer is read at once, and a refiner's deadline holds whatever a server does."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import pytest
import torch

from foresight.refiner import endpoint
from foresight.refiner.answer import read_object, rewording_of
from foresight.refiner.base import RewordingError, RewordingRequest
from foresight.refiner.profiles import Profile
from foresight.refiner.transport import Reply, TransportError

REQUEST = RewordingRequest("a red circle moves left", "blur", torch.rand(5, 16, 16, 3), 0.1)
GOOD = '{"refined_prompt": "a clearly red circle moves left", "negative_prompt": "fog", "reasoning": "pale"}'
MEGABYTE = 1_000_000

PIECES = (
    "<think>", "</think>", "<think></think>", "```", "``` ", "```json", "```json\n", "``", "`", "{", "}", "{}", "[",
    "{\"a\":", '"', "\\", '\\"', '"refined_prompt"', '"refined_prompt": ', '"refined_prompt":"', '"reasoning":"\\"',
    '"reasoning" ', ":", " ", "\n", "\t", "a", "a ", "1", "1e9,", "\u0301\u0315", "\u1100", "\ud83d", "\ufeff", ",",
    "no ", "(a:1.1)", "<a:",
)  # fmt: skip


def reads(text: str) -> None:
    """An answer is used, or refused with a reason; work that grew by the square of the length would take hours."""
    try:
        rewording_of(text, REQUEST, lambda a, b: 1.0)
    except RewordingError as error:
        assert len(str(error)) < 300


@pytest.mark.parametrize("piece", PIECES)
def test_a_megabyte_of_anything_is_read_at_once(piece):
    many = piece * (MEGABYTE // len(piece))
    for text in (many, many + GOOD, GOOD + many, "{" + many, "```" + many, '{"refined_prompt": "' + many):
        reads(text)


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("key", ["refined_prompt", "negative_prompt", "reasoning"])
def test_a_megabyte_in_any_of_its_texts_is_read_at_once(piece, key):
    reads(json.dumps(json.loads(GOOD) | {key: piece * (MEGABYTE // len(piece))}))
    reads(json.dumps(json.loads(GOOD) | {key: [piece] * (MEGABYTE // 8)}))


def test_a_megabyte_of_any_mixture_is_read_at_once():
    chance = random.Random(0)
    for _ in range(20):
        reads("".join(chance.choices(chance.sample(PIECES, 4), k=MEGABYTE // 5)))


@pytest.mark.parametrize(
    "text",
    [
        f"<think>so {{\"refined_prompt\": \"wrong\"}}</think>{GOOD}", f"the end of a thought</think>\n\n{GOOD}",
        f"<think>one</think> <think>two</think>{GOOD}", f"```json\n{GOOD}\n```", f"Here:\n```\n{GOOD}```\n ```more```",
        f"```JSON {GOOD}", f"Sure! {GOOD} Enjoy.", f"\ufeff{GOOD}", GOOD[:-20],
    ],
)  # fmt: skip
def test_an_answer_is_found_among_other_words(text):
    assert read_object(text)["refined_prompt"] == "a clearly red circle moves left"


@pytest.mark.parametrize("key", ["refined_prompt", "negative_prompt"])
@pytest.mark.parametrize("half", ["\ud83d", "\udc00 x", "fog \udfff"])
def test_half_a_character_is_no_text_for_an_encoder(key, half):
    with pytest.raises(RewordingError, match="holds markup"):
        rewording_of(json.dumps(json.loads(GOOD) | {key: f"a very red circle moves left {half}"}), REQUEST, None)
    found = rewording_of(json.dumps(json.loads(GOOD) | {"reasoning": f"pale {half}"}), REQUEST, None)
    assert found.reasoning.encode() and found.prompt.encode()


class Server:
    """Answers nothing, and takes all the time that it is given: by a clock of its own, so that nothing waits."""

    def __init__(self, monkeypatch, takes=1.0, status=None):
        self.now, self.given, self.takes, self.status = 1000.0, [], takes, status
        monkeypatch.setattr(endpoint, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(endpoint, "pause", self.pause)
        monkeypatch.setattr(endpoint, "post", self.post)

    def post(self, *_, seconds, **__):
        self.given.append(seconds)
        self.now += seconds * self.takes
        if self.status is None:
            raise TransportError("the server did not answer in time", again=True)
        return Reply(self.status, {}, b"")

    def pause(self, seconds, _):
        self.now += seconds


@pytest.mark.parametrize(("takes", "status"), [(1.0, None), (0.5, None), (0.9, 500), (0.0, 503), (1.0, 400)])
@pytest.mark.parametrize(
    ("deadline", "timeout", "attempts"), [(90, 60, 4), (10, 60, 4), (61, 60, 9), (30, 1, 1000), (1, 1, 1)]
)
def test_all_attempts_together_end_by_the_deadline(monkeypatch, takes, status, deadline, timeout, attempts):
    server = Server(monkeypatch, takes, status)
    asked = Profile("test", "http://127.0.0.1:1/v1", "m", deadline_s=deadline, timeout_s=timeout, attempts=attempts)
    with pytest.raises(RewordingError) as failed:
        endpoint.EndpointReworder(asked).reword(REQUEST)
    spent = server.now - 1000.0
    assert spent <= deadline + 1e-6 and len(server.given) == failed.value.usage["attempts"] <= attempts
    assert server.given[0] == min(timeout, deadline) and all(0 < seconds <= timeout for seconds in server.given)
    if takes == 1.0 and status is None and attempts > 1:
        assert spent > deadline / 2, "the time that there is, is used"
