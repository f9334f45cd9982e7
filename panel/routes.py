"""HTTP routes of the live panel. All but one only read; ComfyUI's own origin check stands in front of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import web

from ..trials.foreign import quoted
from ..trials.observer import Decision
from .pictures import encode
from .runs import Refused, RunStore

BASE = "/foresight/runs"
MOST_BYTES = 1 << 16  # of a decision: it names at most all trials of a run
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
FOREVER = "private, max-age=86400, immutable"  # a picture of a run's step never changes


def add_routes(routes: web.RouteTableDef, store: RunStore) -> None:
    """
    GET  runs                                      summaries, newest first
    GET  runs/{id}                                 the whole state (Run.state)
    GET  runs/{id}/report                          the run report of a run that has ended
    GET  runs/{id}/trials/{n}/steps/{step}.jpg     the preview's frames side by side; ?frame=i: one of them
    POST runs/{id}/decision {"decision": "accept" | "reject" | "stop"}, or {"decision": "choose", "trials": [n...]}

    400 for malformed requests, 413 for large ones, 404 for what is not there, 409 for a decision that cannot be taken.
    """

    @routes.get(BASE)
    async def list_runs(request: web.Request) -> web.Response:
        return web.json_response({"runs": store.runs()})

    @routes.get(BASE + "/{id:[0-9a-f]{32}}")
    async def one_run(request: web.Request) -> web.Response:
        try:
            return web.json_response(store.state(request.match_info["id"]))
        except KeyError:
            return _gone()

    @routes.get(BASE + "/{id:[0-9a-f]{32}}/report")
    async def report(request: web.Request) -> web.Response:
        try:
            document = store.run(request.match_info["id"]).report
        except KeyError:
            return _gone()
        return web.json_response(document) if document else _error(404, "this run has no report yet")

    @routes.get(BASE + r"/{id:[0-9a-f]{32}}/trials/{trial:\d{1,4}}/steps/{step:\d{1,6}}.jpg")
    async def picture(request: web.Request) -> web.Response:
        where = request.match_info
        tag = f'"{where["id"]}-{where["trial"]}-{where["step"]}-{request.query.get("frame", "")}"'
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304)
        try:
            frames = store.picture(where["id"], int(where["trial"]), int(where["step"]))
            if "frame" in request.query:
                frames = frames[int(request.query["frame"])][None]
        except (KeyError, IndexError):
            return _error(404, "this picture is not, or no longer, there")
        except ValueError:
            return _error(400, "frame is a number")
        try:
            data = await asyncio.to_thread(encode, frames)
        except Exception as error:  # the page is told, whatever the encoder raises; no run is sampled in here to cancel
            return _error(500, f"the picture could not be encoded: {type(error).__name__}: {error}")
        return web.Response(body=data, content_type="image/jpeg", headers={"ETag": tag, "Cache-Control": FOREVER})

    @routes.post(BASE + "/{id:[0-9a-f]{32}}/decision")
    async def decide(request: web.Request) -> web.Response:
        if request.content_type != "application/json":  # what a page of another origin cannot send unasked
            return _error(400, "send application/json")
        if request.content_length is None or request.content_length > MOST_BYTES:
            return _error(413, f"send at most {MOST_BYTES} bytes, and how many they are")
        try:
            body = json.loads(await request.read())
            decision, trials = Decision(body["decision"]), [int(index) for index in body.get("trials", ())]
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            return _error(400, f"decision is one of {', '.join(Decision)}; trials are numbers")
        try:
            store.run(request.match_info["id"]).decide(decision, trials)
        except KeyError:
            return _gone()
        except Refused as refused:
            return _error(409, str(refused))
        return web.json_response({"decision": decision}, status=202)


@web.middleware
async def addressed(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Goes in front of ComfyUI's own check of who asks, which breaks on a port that is no number: such a request to the
    panel's routes gets an answer. All others go by untouched."""
    if request.path.startswith(BASE):
        for header, prefix in (("Origin", ""), ("Host", "//")):
            try:
                _ = urlsplit(prefix + request.headers.get(header, "")).port
            except ValueError:
                return _error(400, f"{header} is {quoted(request.headers[header])}: send an address")
    return await handler(request)


def _gone() -> web.Response:
    return _error(404, "no such run: it may be older than the last ones, which are all that is kept")


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)
