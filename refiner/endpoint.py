"""Trial 2 by any OpenAI-compatible chat-completions server (the paper asks GPT-5-mini, section 4).

Everything is bounded by the profile: one deadline for all attempts, bytes sent and read, tokens of the answer.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from .answer import AnswerRules, Similarity, rewording_of
from .base import Rewording, RewordingError, RewordingRequest
from .pictures import choose_frames, contact_sheet, encode_pictures
from .profiles import Profile, ProfileError
from .template import SCHEMA, instruction
from .transport import Reply, TransportError, backoff, pause, post

_AGAIN = {408, 425, 429, 500, 502, 503, 504, 529}
_REFUSED = {
    401: "the server does not accept the key: see the profile's key_env or key_file",
    403: "the server does not allow this: see the profile's key and model",
    404: "the server does not know this address or model: see the profile's base_url and model",
    413: "the server finds the pictures too large: lower the profile's frames or picture_side",
}


class EndpointReworder:
    """A Reworder that asks a server. similar: see rewording_of. check: called all the while; raises the user's cancel.
    """

    def __init__(
        self, profile: Profile, similar: Similarity | None = None, check: Callable[[], None] = lambda: None
    ):
        self.profile, self.similar, self.check = profile, similar, check
        self.rules = AnswerRules(floor=profile.least_similarity)
        self.name = f"endpoint {profile.name}"

    def reword(self, request: RewordingRequest) -> Rewording:
        if request.preview is None:
            raise RewordingError("there is no preview to show to the model")
        usage: dict[str, Any] = {"profile": self.profile.name, "model": self.profile.model, "attempts": 0}
        try:
            reply = self._ask(self._pictures(request), instruction(request, self.profile.tiled), usage)
            rewording = rewording_of(_content(reply, self.profile, usage), request, self.similar, self.rules)
        except RewordingError as error:
            error.usage = usage
            raise
        except (TransportError, ProfileError) as error:
            raise RewordingError(str(error), usage) from None
        return replace(rewording, usage=usage)

    def _pictures(self, request: RewordingRequest) -> list[bytes]:
        frames = choose_frames(request.preview, self.profile.frames)
        pictures = [contact_sheet(frames)] if self.profile.tiled else list(frames)
        side = self.profile.picture_side * (2 if self.profile.tiled else 1)
        most = self.profile.most_sent_bytes * 3 // 4 - 20_000  # base64 takes a third more, the words some as well
        return encode_pictures(pictures, side, most)

    def _ask(self, pictures: list[bytes], text: str, usage: dict[str, Any]) -> Reply:
        profile = self.profile
        key = profile.key()
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        until = time.monotonic() + profile.deadline_s
        schema, problem = profile.schema, "the deadline is too short"
        while usage["attempts"] < profile.attempts:
            seconds = until - time.monotonic()
            if seconds <= 0:
                break
            usage["attempts"] += 1
            body = json.dumps(_payload(profile, pictures, text, schema)).encode()
            wait = None
            try:
                reply = post(
                    profile.url, body, headers, seconds=min(profile.timeout_s, seconds), most=profile.most_read_bytes,
                    verify=profile.trusted(), check=self.check,
                )  # fmt: skip
            except TransportError as error:
                if not error.again:
                    raise
                problem = str(error)
            else:
                if reply.status == 200:
                    return reply
                problem = _REFUSED.get(reply.status, f"the server answers with status {reply.status}")
                if reply.status not in _AGAIN:
                    if schema and reply.status in (400, 422, 501):  # older servers know no schema: ask plainly
                        schema = False
                        continue
                    raise RewordingError(problem)
                wait = _retry_after(reply)
            if usage["attempts"] == profile.attempts:
                break
            wait = backoff(usage["attempts"] - 1) if wait is None else wait
            if time.monotonic() + wait >= until:
                problem += f", and {wait:.0f} s more to wait are beyond the deadline"
                break
            pause(wait, self.check)
        raise RewordingError(f"{problem} ({usage['attempts']} attempt(s))")


def _payload(profile: Profile, pictures: list[bytes], text: str, schema: bool) -> dict[str, Any]:
    """A chat-completions request. Without a schema it is the plainest form, with the older name of the token limit."""
    urls = ("data:image/jpeg;base64," + base64.b64encode(picture).decode() for picture in pictures)
    parts = [{"type": "text", "text": text}, *({"type": "image_url", "image_url": {"url": url}} for url in urls)]
    payload = {"model": profile.model, "messages": [{"role": "user", "content": parts}]}
    if not schema:
        return payload | {"max_tokens": profile.most_tokens}
    form = {"type": "json_schema", "json_schema": {"name": "refinement", "strict": True, "schema": SCHEMA}}
    return payload | {"max_completion_tokens": profile.most_tokens, "response_format": form}


def _content(reply: Reply, profile: Profile, usage: dict[str, Any]) -> str:
    """The message's text; what it cost is written into `usage`."""
    try:
        answer = json.loads(reply.body)
    except (ValueError, RecursionError):
        raise RewordingError("the server's answer is not JSON") from None
    if not isinstance(answer, dict):
        raise RewordingError("the server's answer is no chat completion")
    spent = answer.get("usage")
    tokens = [spent.get(key) if isinstance(spent, dict) else None for key in ("prompt_tokens", "completion_tokens")]
    if all(isinstance(count, int) and 0 <= count < 1e9 for count in tokens):
        usage |= {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "price": profile.price(*tokens)}
    try:
        message = answer["choices"][0]["message"]
        content = message["content"]
        if isinstance(content, list):  # some servers answer in parts as well
            content = "".join(part["text"] for part in content if part.get("type") == "text")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise RewordingError("the server's answer is no chat completion") from None
    if isinstance(message.get("refusal"), str) and not content:
        raise RewordingError("the model refuses to answer")
    if not isinstance(content, str) or not content.strip():
        raise RewordingError("the model's answer is empty; a reasoning model may need more most_tokens")
    return content


def _retry_after(reply: Reply) -> float | None:
    """Seconds that the server asks for, as a number or as a date."""
    value = reply.headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # the latter for a date without a zone
        return None
