"""The live panel's routes: what they answer, and what they refuse."""

from __future__ import annotations

import asyncio
import json
from io import BytesIO

import numpy as np
import pytest
import torch
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image

from foresight.panel.routes import add_routes, addressed
from foresight.panel.runs import RunStore
from foresight.trials.observer import Decision


def ask(store, *requests):
    """The answers (status, headers, body) to (method, path, keywords) from the real routes."""

    async def run():
        routes = web.RouteTableDef()
        add_routes(routes, store)
        app = web.Application(middlewares=[addressed])
        app.add_routes(routes)
        async with TestClient(TestServer(app)) as client:
            answers = []
            for method, path, keywords in requests:
                async with client.request(method, f"/foresight/runs{path}", **keywords) as answer:
                    answers.append((answer.status, answer.headers, await answer.read()))
            return answers

    return asyncio.run(run())


@pytest.fixture
def shown():
    """A store with a live run that has one picture; yields the store and the run."""
    store, frames = RunStore(), torch.zeros(5, 8, 8, 3)
    frames[2] = 1
    with store.running(None, "prompt", "7", "tab") as run:
        run.begin("0", "sample", steps=50, window=(8, 14), decidable=True, settings={"prompt": "a red circle"})
        run.step(9, 0.25, frames)
        yield store, run


def test_pictures_are_encoded_when_asked_for_and_cached_by_the_browser(shown):
    store, run = shown
    at = f"/{run.id}/trials/0/steps/9.jpg"
    (status, headers, body), (_, _, frame) = ask(store, ("GET", at, {}), ("GET", f"{at}?frame=2", {}))
    assert status == 200 and headers["Content-Type"] == "image/jpeg" and "immutable" in headers["Cache-Control"]
    assert Image.open(BytesIO(body)).size == (40, 8)
    assert np.asarray(Image.open(BytesIO(frame))).min() > 250
    ((status, _, body),) = ask(store, ("GET", at, {"headers": {"If-None-Match": headers["ETag"]}}))
    assert status == 304 and body == b""
    assert run.somebody_looks()


def test_lists_and_states_are_json(shown):
    store, run = shown
    (_, _, listed), (_, _, state) = ask(store, ("GET", "", {}), ("GET", f"/{run.id}", {}))
    assert json.loads(listed)["runs"][0]["prompt"] == "a red circle"
    assert json.loads(state) == json.loads(json.dumps(store.state(run.id)))


@pytest.mark.parametrize(
    "path, status",
    [
        (f"/{'0' * 32}", 404), (f"/{'0' * 32}/report", 404), (f"/{'0' * 32}/trials/0/steps/9.jpg", 404),
        ("/not-an-id", 404), ("/{id}/trials/7/steps/9.jpg", 404), ("/{id}/trials/0/steps/10.jpg", 404),
        ("/{id}/trials/0/steps/9.jpg?frame=50", 404), ("/{id}/trials/0/steps/9.jpg?frame=x", 400), ("/..", 404),
        ("/{id}/report", 404),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_so(shown, path, status):
    store, run = shown
    ((found, _, _),) = ask(store, ("GET", path.format(id=run.id), {}))
    assert found == status


def test_a_picture_that_cannot_be_encoded_is_said_so(shown):
    store, run = shown
    run.trials[0].pictures[9] = np.zeros((2, 3, 3, 7), np.uint8)  # seven colours
    ((status, _, body),) = ask(store, ("GET", f"/{run.id}/trials/0/steps/9.jpg", {}))
    assert status == 500 and "could not be encoded" in json.loads(body)["error"]


def test_a_fourth_channel_is_not_shown(shown):
    store, run = shown
    run.step(10, 0.2, torch.ones(2, 8, 8, 4))
    ((status, _, body),) = ask(store, ("GET", f"/{run.id}/trials/0/steps/10.jpg", {}))
    assert status == 200 and Image.open(BytesIO(body)).size == (16, 8)


def test_decisions_over_http(shown):
    store, run = shown
    at = f"/{run.id}/decision"
    answers = ask(
        store,
        ("POST", at, {"json": {"decision": "explode"}}), ("POST", at, {"json": ["accept"]}),
        ("POST", at, {"data": "not json", "headers": {"Content-Type": "application/json"}}),
        ("POST", at, {"data": {"decision": "accept"}}),  # a form, as any page could send it
        ("POST", f"/{'0' * 32}/decision", {"json": {"decision": "accept"}}),
        ("POST", at, {"json": {"decision": "accept"}}), ("POST", at, {"json": {"decision": "stop"}}),
    )  # fmt: skip
    assert [status for status, _, _ in answers] == [400, 400, 400, 400, 404, 202, 409]
    assert run.take() is Decision.ACCEPT


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("kind", [
    "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None,
    "text/plain; application/json",
])  # fmt: skip
def test_what_another_pages_form_can_send_decides_nothing(shown, kind):
    """A page may send these without asking first; what they hold would be a decision if it were read."""
    store, run = shown
    sent = {"data": b'{"decision": "stop"}', "headers": {"Content-Type": kind} if kind else {}}
    if kind is None:
        sent["skip_auto_headers"] = ["Content-Type"]
    ((status, _, body),) = ask(store, ("POST", f"/{run.id}/decision", sent))
    assert status == 400 and "application/json" in json.loads(body)["error"] and run.take() is None


@pytest.mark.parametrize("body", [
    b"[" * 60_000, b"\xff\xfe", b'{"decision": "choose", "trials": [1e999]}', b"9" * 5000,
    b'{"decision": "choose", "trials": [NaN]}',
    b'{"decision": ["stop"]}', b'{"decision": {}, "trials": 7}', b'"decision"', b"null", b"",
    b'{"decision": "choose", "trials": {"a": 1}}',
])  # fmt: skip
def test_a_body_that_is_none_is_said_so(shown, body):
    store, run = shown
    kinds = (JSON, {"Content-Type": "application/json; charset=none"})
    sent = [("POST", f"/{run.id}/decision", {"data": body, "headers": kind}) for kind in kinds]
    for status, _, answer in ask(store, *sent):
        assert status == 400 and "decision is one of" in json.loads(answer)["error"]


def test_a_body_without_end_is_not_read(shown):
    store, run = shown

    async def endless():
        for _ in range(20):
            yield b" " * 10_000

    for data in (b" " * 100_000, endless()):
        ((status, _, _),) = ask(store, ("POST", f"/{run.id}/decision", {"data": data, "headers": JSON}))
        assert status == 413


@pytest.mark.parametrize("header", ["Origin", "Host"])
@pytest.mark.parametrize("port", ["port", "99999999", "-1", "1:2", "\u0661"])
def test_an_address_that_is_none_is_said_so(shown, header, port):
    store, run = shown
    address = {"Origin": f"http://localhost:{port}", "Host": f"localhost:{port}"}[header]
    ((status, _, body),) = ask(store, ("GET", f"/{run.id}", {"headers": {header: address}}))
    assert status == 400 and json.loads(body)["error"].startswith(f"{header} is")
    (found,) = ask(store, ("GET", f"/{run.id}", {"headers": {header: "null" if header == "Origin" else "[::1]:80"}}))
    assert found[0] == 200
