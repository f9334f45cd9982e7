"""Promise 2 in one place: whatever breaks beside the sampling is logged and told, and the clip goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import comfy.model_management

from ..trials.foreign import logger


@dataclass
class Failure:
    """error: what was raised, None where all went well. message: for the report, "what failed: its kind: its words"."""

    error: Exception | None = None
    message: str | None = None


@contextmanager
def harmless(what: str) -> Iterator[Failure]:
    """Keeps what its block raises from the caller, and holds it in the failure; only the user's own cancel gets out."""
    failure = Failure()
    try:
        yield failure
    except comfy.model_management.InterruptProcessingException:
        raise
    except Exception as error:  # out of memory, a broken file, a page that is gone: none of it may end a run
        failure.error, failure.message = error, f"{what}: {type(error).__name__}: {error}"
        logger.warning("Foresight: %s", failure.message)
