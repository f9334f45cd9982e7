"""What a run tells whoever watches it, and what a person may decide meanwhile: all that sampling knows of the panel."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from .foreign import logger
from .verdict import TrialRecord, Verdict


class Decision(StrEnum):
    """What a person can say of a live run: take it as it is, go on to the next trial or candidate, cancel the queue's
    run, or finish these of the trials that are offered."""

    ACCEPT = "accept"
    REJECT = "reject"
    STOP = "stop"
    CHOOSE = "choose"


def for_show(method: Callable) -> Callable:
    """A method of an observer that gives None instead of raising: only the user's own cancel comes out of it."""

    @functools.wraps(method)
    def shown(self, *args, **kwargs):
        try:
            return method(self, *args, **kwargs)
        except self.cancelled:
            raise
        except Exception as error:  # what is only for show decides nothing and ends nothing (promise 2)
            logger.warning("Foresight: the panel missed a %s: %s: %s", method.__name__, type(error).__name__, error)

    return shown


class Observer:
    """Keeps nothing and decides nothing: the silent default, and the base of whoever watches (panel.runs.Run). What a
    subclass makes of these methods is made `for_show`, so whoever calls them need not guard himself.

    id: its name for the run, for nodes that go on with it. choice: the answer to an offer, None until there is one.
    cancelled: what is raised when the user cancels.
    """

    id: str | None = None
    choice: list[int] | None = None
    cancelled: type[BaseException] = KeyboardInterrupt

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        for name in vars(cls).keys() & vars(Observer).keys():
            if inspect.isfunction(method := vars(cls)[name]):
                setattr(cls, name, for_show(method))

    def begin(
        self, trial: str, kind: str, *, steps: int = 0, window: tuple[int, int] | None = None, decidable: bool = False,
        settings: dict[str, Any] | None = None, details: dict[str, Any] | None = None,
    ) -> None:
        """A trial starts. window: the detector's first and last step; decidable: whether accepting or rejecting changes
        what comes next (there is a gate). settings: of the run, as the report has them (prompt, tau, seed, steps).
        details: of a candidate (candidate, seed, self_refined, floor)."""

    def step(self, step: int, score: float | None, frames: Any = None, trial: str | None = None) -> None:
        """A step (1-based) is done. score: of the best item where it was inspected; frames: the preview's, [F, H, W, 3]
        in 0..1, where there is one. trial: which one's, of several that were begun; None: the last that has not
        ended."""

    def conclude(self, record: TrialRecord) -> None:
        """The trial of the record's name has ended with it."""

    def finish(self, verdict: Verdict) -> None:
        """The node is done; a later node of the same graph may go on with this run."""

    def wants_picture(self) -> bool:
        """Whether somebody would see a picture of a step that is not inspected, and it is time for one."""
        return False

    def somebody_looks(self) -> bool:
        return False

    def take(self) -> Decision | None:
        """What a person has decided since the last call, if anything."""

    def offer(self, trials: list[int] | None, best: list[int], seconds: float) -> None:
        """Asks a person to pick of these trials, as many as `best` has or fewer; `choice` then holds the answer.
        None: the offer is over."""

    def waits(self, seconds: float) -> None:
        """An offer stays open for so long; 0: no longer."""


SILENT = Observer()
