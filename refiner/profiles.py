"""Endpoints as profiles in a file of the machine's owner. A workflow carries a profile's name and nothing else."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..files.documents import read_json
from ..files.fields import FileError
from ..trials.foreign import printable, quoted, writable
from .answer import AnswerRules

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_NAME = re.compile(r"[\w .:-]{1,60}")
MOST_PROFILES, MOST_CHARACTERS = 1000, 2000  # of a file; of a text in it, an address or a path
_TYPES = {"str": str, "float": (int, float), "int": int, "bool": bool}


class ProfileError(ValueError):
    """The configuration file or a profile in it cannot be used; says where and what to change. Never holds a key."""

    def __init__(self, message: str):
        super().__init__(writable(message))  # names and paths are the owner's, in any language


@dataclass(frozen=True)
class Profile:
    """One OpenAI-compatible server and model.

    base_url: up to and without "/chat/completions". The key comes from the environment variable key_env or the file
    key_file; a local server needs neither. Prices are for a million tokens, in any one currency. deadline_s is for
    everything, timeout_s for one attempt. schema: ask for JSON by schema; servers that refuse are asked plainly.
    tiled: one picture with all frames. ca_file: certificates to trust instead of the usual ones.
    """

    name: str
    base_url: str
    model: str
    key_env: str = ""
    key_file: str = ""
    ca_file: str = ""
    price_input: float = 0.0
    price_output: float = 0.0
    deadline_s: float = 90.0  # a call took 8.5 s in the paper (Table S3); reasoning models take several times that
    timeout_s: float = 60.0
    attempts: int = 4
    frames: int = 5  # the paper sends the preview's frames; a 49-frame clip has 13, of which five tell the same
    tiled: bool = False
    schema: bool = True
    most_tokens: int = 4000  # of the answer, a reasoning model's thoughts included
    picture_side: int = 512
    most_sent_bytes: int = 4_000_000
    most_read_bytes: int = 1_000_000
    least_similarity: float = AnswerRules().floor

    def __post_init__(self):
        problem = self._problem()
        if problem:
            raise ProfileError(f"profile '{self.name}': {problem}")

    def _problem(self) -> str | None:
        for field in fields(self):
            value, kind = getattr(self, field.name), _TYPES[field.type]
            if not isinstance(value, kind) or (isinstance(value, bool) and field.type != "bool"):
                return f"{field.name} must be of type {field.type}"
            if isinstance(value, str) and not (len(value) <= MOST_CHARACTERS and value.isprintable()):
                return f"{field.name} has {len(value)} characters: enter at most {MOST_CHARACTERS}, all printable"
            if field.type in ("float", "int"):
                least = 0 if field.name.startswith(("price", "least")) else 0.1 if field.type == "float" else 1
                if not least <= value < 1e9:
                    return f"{field.name} is {quoted(value)}: set it to {least} or more"
        if not self.model.strip():
            return "model is empty: enter the model's name as the server knows it"
        if self.key_env and not _VARIABLE.fullmatch(self.key_env):  # not repeated: some enter the key itself
            return "key_env must be the name of an environment variable, like OPENAI_API_KEY"
        if self.key_env and self.key_file:
            return "give key_env or key_file, not both"
        try:
            parts = urlsplit(self.base_url)
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            good = False
        if not good:
            return "base_url must be an address like https://api.openai.com/v1"
        if parts.username or parts.password or parts.query or parts.fragment:
            return "base_url must hold no user, password, query or fragment; a key belongs into key_env or key_file"
        return None

    @property
    def url(self) -> str:
        return self.base_url.rstrip("/") + "/chat/completions"

    def key(self) -> str | None:
        """The key, or None for a server that needs none. ProfileError where it should be there and is not."""
        if self.key_env:
            key, where = os.getenv(self.key_env, ""), f"the environment variable {self.key_env}"
        elif self.key_file:
            where = "key_file"
            try:
                path = Path(self.key_file).expanduser()
                key = path.read_text(encoding="utf-8") if path.is_file() and path.stat().st_size < 10_000 else ""
            except (OSError, RuntimeError, ValueError):  # no such user's home, no such path, no text
                key = ""
        else:
            return None
        key = key.strip()
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise ProfileError(f"profile '{self.name}': {where} holds no key")
        return key

    def trusted(self) -> str | bool:
        """As requests takes it: True for the usual certificates. ProfileError where ca_file is not there."""
        try:
            there = not self.ca_file or Path(self.ca_file).is_file()
        except (OSError, ValueError):  # a name that is too long to be one
            there = False
        if not there:
            raise ProfileError(f"profile '{self.name}': ca_file is not there")
        return self.ca_file or True

    def price(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """None where the profile states no price."""
        if not self.price_input and not self.price_output:
            return None
        return (prompt_tokens * self.price_input + completion_tokens * self.price_output) / 1e6


def load_profiles(path: Path) -> dict[str, Profile]:
    """The profiles of a configuration file; none where there is no file. ProfileError: see there.

    {"profiles": {"gpt": {"base_url": "https://api.openai.com/v1", "model": "gpt-5-mini", "key_env": "OPENAI_API_KEY"}}}
    """
    if not path.exists():
        return {}
    try:
        document = read_json(path, "list of profiles", "See docs/refiner.md for its form.")
    except FileError as error:
        raise ProfileError(str(error)) from None
    entries = document.get("profiles") if isinstance(document, dict) else None
    if not isinstance(entries, dict):
        raise ProfileError(f'{path.name} must be {{"profiles": {{name: {{...}}}}}}')
    if len(entries) > MOST_PROFILES:
        raise ProfileError(f"{path.name} has {len(entries)} profiles: keep at most {MOST_PROFILES}")
    return {name: _profile(name, entry) for name, entry in entries.items()}


def _profile(name: str, entry: Any) -> Profile:
    if not _NAME.fullmatch(name):
        raise ProfileError(f"profile name {quoted(name)}: use letters, digits, spaces and . : - _, at most 60")
    names = [field.name for field in fields(Profile) if field.name != "name"]
    if not isinstance(entry, dict):
        raise ProfileError(f"profile '{name}' must be an object with {', '.join(names)}")
    unknown = sorted(set(entry) - set(names))
    if unknown:
        listed = printable(", ".join(unknown))
        raise ProfileError(f"profile '{name}': {listed} is unknown; there is {', '.join(names)}")
    missing = [key for key in ("base_url", "model") if key not in entry]
    if missing:
        raise ProfileError(f"profile '{name}': {' and '.join(missing)} is missing")
    return Profile(name, **entry)
