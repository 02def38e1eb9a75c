"""The forecast of a running sweep: fed by its events, kept in the ledger beside what it really took, read again for its result.

Does not know how a forecast is made, or shown. Cost: that of the estimator, and two rows a run.
"""

from __future__ import annotations

import time
from dataclasses import asdict

from sweeper.executors.base import Sharing, Unwatched, Watch
from sweeper.records import Decision, Outcome, Report, TrialSpec, TrialState
from sweeper.study.gateway import Gateway
from sweeper.study.plan import StudyPlan
from sweeper.sweep.expected import FORECAST, TOOK
from sweeper.sweep.forecast.estimator import Estimator
from sweeper.sweep.forecast.layout import frame_of, past_of, remembered
from sweeper.sweep.listen import Listener
from sweeper.sweep.prepare import Prepared, held_device


class Expecting:
    """A Listener that feeds an estimator, keeps its first forecast, and hands everything on; also an executor's watch.

    `watch` hears of engines as well.
    """

    def __init__(self, ready: Prepared, gateway: Gateway, listener: Listener, watch: Watch | None = None) -> None:
        frame = frame_of(ready)
        history, observed = past_of(ready, frame, gateway.seconds())
        probed = remembered(ready, frame)
        source = "" if observed.known or probed is None else "probe"
        self.estimator = Estimator(ready.plan, probed or frame, history, observed, held_device(ready.spec), source)
        self._gateway = gateway
        self._listener = listener
        self._watch = watch or Unwatched()
        self._began = time.monotonic()

    def train(self) -> None:
        """The executor begins."""
        self._listener.expecting(self.estimator)
        self._keep_first()

    def trained(self) -> None:
        """The executor has come to its end."""
        payload = {"seconds": time.monotonic() - self._began, "term": self._gateway.term}
        self._gateway.ledger.add_event(TOOK, None, payload, key=f"{TOOK}:{self._gateway.term}")

    def sharing(self, sharing: Sharing) -> None:
        """What the engines found."""
        if sharing.engines:
            slots = max(engine.slots for engine in sharing.engines)
            self.estimator.shared(len(sharing.engines), slots, max(engine.micro_tokens for engine in sharing.engines))
        self._watch.sharing(sharing)

    def notice(self, text: str) -> None:
        """On."""
        self._listener.notice(text)

    def progress(self, what: str, done: int, total: int | None) -> None:
        """On."""
        self._listener.progress(what, done, total)

    def begin(self, plan: StudyPlan, finished: int, best: tuple[int, float] | None) -> None:
        """On."""
        self._listener.begin(plan, finished, best)

    def expecting(self, estimator: Estimator) -> None:
        """On."""
        self._listener.expecting(estimator)

    def started(self, trial: TrialSpec) -> None:
        """To both."""
        self.estimator.started(trial)
        self._listener.started(trial)

    def reported(self, report: Report, decision: Decision) -> None:
        """To both."""
        self.estimator.reported(report, decision)
        self._listener.reported(report, decision)
        self._keep_first()

    def ended(self, trial: int, outcome: Outcome, state: TrialState) -> None:
        """To both."""
        self.estimator.ended(trial, state)
        self._listener.ended(trial, outcome, state)

    def finish(self) -> None:
        """On."""
        self._listener.finish()

    def _keep_first(self) -> None:
        first = self.estimator.make_first()
        if first is not None:
            payload = {**asdict(first), "term": self._gateway.term}
            self._gateway.ledger.add_event(FORECAST, None, payload, key=f"{FORECAST}:{self._gateway.term}")
