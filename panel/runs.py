"""The runs that the live panel shows, in bounded memory. Sampling writes, requests read; nothing here waits or draws.

A run is what one graph does for one clip, over all its trials. Its state (`Run.state`) is JSON; every change also goes
out as a small event, so that a page follows with events alone and rebuilds itself from the state after a reload.
"""

from __future__ import annotations

import json
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..trials.foreign import logger
from ..trials.observer import Decision, Observer, for_show
from ..trials.report import Report, run_report, safe
from .pictures import thumbnail

MAX_RUNS = 24
MAX_BYTES = 192 * 2**20  # of pictures: a 480p clip of 8 frames is about 0.5 MB a step
WATCHED = 10.0  # seconds after a picture was asked for in which somebody is taken to be looking
PICTURE_EVERY = 1.0  # seconds between pictures of steps that are not inspected: they are made only to be looked at
EVENT_EVERY = 0.2  # seconds between events of steps without a score

Send = Callable[[str, dict[str, Any], str | None], None]


class Refused(Exception):
    """A decision that cannot be taken now; says why."""


def for_page(value: Any) -> Any:
    """As safe, for JavaScript: it rounds whole numbers above 2^53, as seeds may be, so those become text."""
    return json.loads(json.dumps(safe(value)), parse_int=lambda text: text if abs(int(text)) > 2**53 else int(text))


@dataclass
class Trial:
    """One guider call or rewording of a run. trace: [step, score or None]; window: the detector's first and last step.

    decidable: whether accepting or rejecting changes what comes next (there is a gate). details: of a candidate.
    """

    trial: str
    kind: str
    steps: int
    window: tuple[int, int] | None
    decidable: bool
    details: dict[str, Any]
    step: int = 0
    trace: list[tuple[int, float | None]] = field(default_factory=list)
    verdict: dict[str, Any] | None = None
    pictures: dict[int, np.ndarray] = field(default_factory=dict)  # step -> uint8 [frames, height, width, 3]

    @property
    def undecided(self) -> bool:
        """A candidate that has passed its look cannot be put aside: the budget counts on its being finished."""
        return self.decidable and not (self.kind == "candidate" and self.step >= self.window[1])

    def state(self) -> dict[str, Any]:
        """pictures: the steps that have one; size: frames, height and width of each."""
        first = next(iter(self.pictures.values()), None)
        return {
            "trial": self.trial, "kind": self.kind, "steps": self.steps, "window": self.window,
            "decidable": self.decidable, "details": self.details, "step": self.step, "trace": list(self.trace),
            "verdict": self.verdict,
            "pictures": sorted(self.pictures), "size": None if first is None else list(first.shape[:3]),
        }  # fmt: skip


class Run(Observer):
    """One run, as its own sampling thread writes it."""

    def __init__(self, store: RunStore, prompt_id: str, node: str, client: str | None, graph: str | None = None):
        self.id = uuid.uuid4().hex
        self.store, self.client, self.cancelled = store, client, store.cancelled
        self.about: dict[str, Any] = {
            "id": self.id, "prompt_id": prompt_id, "node": node, "graph": graph, "created": time.time(),
        }  # fmt: skip
        self.settings: dict[str, Any] = {}
        self.trials: list[Trial] = []
        self.live, self.message = True, None
        self.report: Report | None = None
        self.sequence = 0
        self.offered: dict[str, Any] | None = None
        self._decision: Decision | None = None
        self._last_picture = self._last_event = 0.0  # when

    def _open(self, name: str | None = None) -> int:
        """The last trial (of this name) that has not ended; where there is none, the last of all."""
        found = (i for i, each in enumerate(self.trials) if each.verdict is None and name in (None, each.trial))
        return max(found, default=len(self.trials) - 1)

    def begin(self, trial, kind, *, steps=0, window=None, decidable=False, settings=None, details=None):
        with self.store.lock:
            self.trials.append(Trial(trial, kind, steps, window, decidable, details or {}))
            if "text_notes" not in self.settings:  # once a run
                for note in (settings or {}).get("text_notes", ()):
                    logger.warning("Foresight: %s", note)
            self.settings.update(settings or {})
            self._decision = None
            self._send("trial", index=len(self.trials) - 1, trial=self.trials[-1].state(), settings=self.settings)

    def wants_picture(self):
        return self.somebody_looks() and time.monotonic() - self._last_picture > PICTURE_EVERY

    def somebody_looks(self):
        return time.monotonic() - self.store.looked_at < WATCHED

    def offer(self, trials, best, seconds):
        with self.store.lock:
            self.choice = None
            until = time.time() + seconds
            self.offered = None if trials is None else {"trials": trials, "best": best, "until": until, "left": None}
            self._send("start", state=self.state())

    def waits(self, seconds):
        with self.store.lock:
            left = math.ceil(seconds)
            if self.offered and self.offered["left"] != left:
                self.offered["left"] = left
                self._send("wait", seconds=left)

    def step(self, step, score, frames=None, trial=None):
        now, picture = time.monotonic(), self._picture(frames)
        with self.store.lock:
            index = self._open(trial)
            trial = self.trials[index]
            trial.step = step
            if score is not None:
                trial.trace.append((step, score))
            if picture is not None:
                trial.pictures[step] = picture
                self._last_picture = now
                self.store.fit()
            if score is None and picture is None and now - self._last_event < EVENT_EVERY and step < trial.steps:
                return
            self._last_event = now
            has_picture = step in trial.pictures
            size = list(trial.pictures[step].shape[:3]) if has_picture else None
            self._send("step", index=index, step=step, scored=score is not None, score=score,
                       pictured=has_picture, size=size)

    @for_show
    def _picture(self, frames: Any) -> np.ndarray | None:
        return None if frames is None else thumbnail(frames)

    def take(self):
        decision, self._decision = self._decision, None
        return decision

    def decide(self, decision: Decision, trials: list[int] | None = None) -> None:
        """trials: for CHOOSE, indices of those that are offered. Raises Refused."""
        with self.store.lock:
            if not self.live:
                raise Refused("this run has ended")
            if decision is Decision.CHOOSE:
                if not self.offered:
                    raise Refused("nothing is offered now: the time is over, or the choice was made")
                if not trials or not set(trials) <= set(self.offered["trials"]):
                    raise Refused("choose at least one of the trials that are offered")
                if len(set(trials)) > (most := len(self.offered["best"])):
                    raise Refused(f"{len(set(trials))} are ticked, and `keep` is {most}: untick some, or raise it")
                self.choice = list(dict.fromkeys(trials))
                return
            if self._decision is not None:
                raise Refused(f"'{self._decision}' was asked for just before, and is not done yet")
            if decision is not Decision.STOP and not (self.trials and self.trials[self._open()].undecided):
                raise Refused("nothing is being judged in this part of the run: it can only be stopped")
            self._decision = decision

    def conclude(self, record):
        with self.store.lock:
            index = self._open(record.trial)
            trial, best = self.trials[index], record.best
            trial.decidable, trial.step = False, max(trial.step, record.steps)
            trial.verdict = {
                "accepted": record.accepted, "predicted_score": best and best.predicted_score,
                "stop_step": best and best.stop_step, "rule": best and best.rule, "message": record.message,
                "nfe": record.nfe_video + record.nfe_single_frame, "seconds": sum(record.seconds.values()),
                "prompt": record.prompt, "details": record.details,
            }  # fmt: skip
            self._send("verdict", index=index, step=trial.step, verdict=trial.verdict)

    def finish(self, verdict):
        self.report = run_report(verdict)

    def amend(self, report: Report) -> None:
        """The report knows more now: the finished clip has been scored."""
        with self.store.lock:
            self.report = report
            self._send("end", message=self.message, report=report)

    def close(self, message: str | None) -> None:
        with self.store.lock:
            self.live, self.message, self._decision, self.offered = False, message, None, None
            self._send("end", message=message, report=self.report)

    def reopen(self, node: str, client: str | None) -> None:
        with self.store.lock:
            self.live, self.message, self.client = True, None, client
            self.about["node"] = node
            self._send("start", state=self.state())

    def state(self) -> dict[str, Any]:
        return self.about | {
            "sequence": self.sequence, "live": self.live, "message": self.message, "settings": self.settings,
            "trials": [trial.state() for trial in self.trials], "report": self.report, "offered": self.offered,
        }  # fmt: skip

    def summary(self) -> dict[str, Any]:
        last = self.trials[self._open()] if self.trials else None
        return self.about | {
            "live": self.live, "prompt": self.settings.get("prompt"), "seed": self.settings.get("seed"),
            "trial": last and last.trial, "accepted": self.report and self.report["accepted"],
        }  # fmt: skip

    @property
    def bytes(self) -> int:
        return sum(picture.nbytes for trial in self.trials for picture in trial.pictures.values())

    def thin_out(self) -> None:
        """Drops every other picture; the last of each trial stays."""
        for trial in self.trials:
            for step in sorted(trial.pictures)[-2::-2]:
                del trial.pictures[step]

    def _send(self, event: str, **data: Any) -> None:
        self.sequence += 1
        self.store.send(f"foresight.{event}", {"run": self.id, "sequence": self.sequence, **data}, self.client)


class RunStore:
    """The last MAX_RUNS runs, their pictures within MAX_BYTES; the oldest go first.

    send(event, data, client) must not block, and may fail. cancelled: what is raised when the user cancels.
    """

    def __init__(
        self, send: Send = lambda event, data, client: None, cancelled: type[BaseException] = KeyboardInterrupt
    ):
        self.lock = threading.RLock()
        self.looked_at = -math.inf
        self._tell, self.cancelled = send, cancelled
        self._runs: dict[str, Run] = {}

    def send(self, event: str, data: dict[str, Any], client: str | None) -> None:
        try:
            self._tell(event, for_page(data), client)
        except self.cancelled:
            raise
        except Exception as error:  # a page that is gone must not end a run, whatever its connection raises (promise 2)
            logger.debug("Foresight: %s was not sent: %s: %s", event, type(error).__name__, error)

    @contextmanager
    def running(
        self, id: str | None, prompt_id: str, node: str, client: str | None, graph: str | None = None
    ) -> Iterator[Run]:
        """The run that a node works on: the one with this id, which a verdict brings along, or a new one. graph: the
        page's own name for the graph that was queued, where there is one."""
        with self.lock:
            run = self._runs.get(id or "")
            if run is None:
                run = Run(self, prompt_id, node, client, graph)
                self._runs[run.id] = run
                self.fit()
            run.reopen(node, client)
        message: str | None = "stopped"
        try:
            yield run
            message = None
        except self.cancelled:
            raise
        except Exception as error:  # only to tell the page why; it goes on its way
            message = f"{type(error).__name__}: {error}"
            raise
        finally:
            run.close(message)

    def amend(self, id: str | None, report: Report) -> None:
        """See Run.amend; nothing for a run that is not, or no longer, there."""
        with self.lock:
            if run := self._runs.get(id or ""):
                run.amend(report)

    def fit(self) -> None:
        """Drops what is too much: whole runs that have ended, then pictures of those that are live."""
        with self.lock:
            ended = [run for run in self._runs.values() if not run.live]
            while ended and (len(self._runs) > MAX_RUNS or self.bytes > MAX_BYTES):
                del self._runs[ended.pop(0).id]
            while self.bytes > MAX_BYTES:
                before = self.bytes
                for run in self._runs.values():
                    run.thin_out()
                if self.bytes == before:
                    break

    @property
    def bytes(self) -> int:
        return sum(run.bytes for run in self._runs.values())

    def runs(self) -> list[dict[str, Any]]:
        """Summaries, newest first."""
        with self.lock:
            return [for_page(run.summary()) for run in reversed(self._runs.values())]

    def run(self, id: str) -> Run:
        """KeyError for one that is not, or no longer, there."""
        with self.lock:
            return self._runs[id]

    def state(self, id: str) -> dict[str, Any]:
        with self.lock:
            self.looked_at = time.monotonic()
            return for_page(self._runs[id].state())

    def picture(self, id: str, trial: int, step: int) -> np.ndarray:
        """uint8 [frames, height, width, 3]. KeyError or IndexError for one that is not, or no longer, there."""
        with self.lock:
            self.looked_at = time.monotonic()
            return self._runs[id].trials[trial].pictures[step]
