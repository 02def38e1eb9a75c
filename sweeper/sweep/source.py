"""The TrialSource of a sweep: what an executor asks, answered by the study and shown to the listener.

Does not know where trials run, nor how the study decides or stores. Adds nothing to the gateway's own cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from sweeper.records import Decision, Done, Outcome, Report, TrialSpec, Wait
from sweeper.study.gateway import Gateway
from sweeper.sweep.listen import Listener


class SourceDepot(Protocol):
    """Where results of trials lie, seen from the driver."""

    def bring(self, name: str) -> None:
        """Fetches a folder into the home, where workers wrote it elsewhere."""
        ...

    def forget(self, name: str) -> None:
        """Removes a folder that nobody will ask for again."""
        ...


class SweepSource:
    """Hands every question to the gateway. One object serves one run of one executor, from one thread."""

    def __init__(self, gateway: Gateway, listener: Listener, depot: SourceDepot) -> None:
        self._gateway = gateway
        self._listener = listener
        self._depot = depot
        self.why_done = ""
        self._draining = False
        self._gathering = False
        self._later: list[Callable[[], None]] = []

    @contextmanager
    def together(self) -> Iterator[None]:
        """One transaction for what is asked and told in here. Listeners hear of it, and checkpoints go, once it is committed."""
        self._gathering = True
        try:
            with self._gateway.together():
                yield
            later = list(self._later)
        finally:
            self._gathering = False
            self._later.clear()
        for call in later:
            call()

    def _then(self, call: Callable[[], None]) -> None:
        """Does what may only be done once the study has kept what was told."""
        if self._gathering:
            self._later.append(call)
        else:
            call()

    def next_trial(self) -> TrialSpec | Wait | Done:
        """The study's next trial."""
        answer = self._gateway.next()
        if isinstance(answer, TrialSpec):
            self._then(partial(self._listener.started, answer))
        elif isinstance(answer, Done):
            self.why_done = answer.reason
        return answer

    def on_report(self, report: Report) -> Decision:
        """Stores the report, then answers it."""
        decision = self._gateway.report(report)
        self._then(partial(self._listener.reported, report, decision))
        return decision

    def decisions(self) -> list[Decision]:
        """Answers to parked trials, and what trials are told once the budget is used up."""
        answers = self._gateway.decisions()
        if answers and not self._draining and (over := self._gateway.over_budget()):
            self._draining = True
            self._listener.notice(f"{over}; trials that run are saved and wait for a larger budget")
        return answers

    def on_end(self, trial: int, outcome: Outcome) -> None:
        """Stores how the trial ended, once its results are at home."""
        for name in (outcome.adapter, outcome.outcomes):
            if name is not None:
                self._depot.bring(name)
        state = self._gateway.end(trial, outcome)
        if state.is_finished():
            self._then(partial(self._depot.forget, f"checkpoints/{self._gateway.plan.name}/{trial}"))
        self._then(partial(self._listener.ended, trial, outcome, state))
