"""What a person may watch while a sweep runs. The command line draws it; a program may pass its own listener.

Does not know how anything is drawn. All calls come from the driver's thread, except `notice`, which may come from any.
"""

from __future__ import annotations

from typing import Protocol

from sweeper.records import Decision, Outcome, Report, TrialSpec, TrialState
from sweeper.study.plan import StudyPlan
from sweeper.sweep.forecast.estimator import Estimator


class Listener(Protocol):
    """Called as a sweep goes on; must return quickly and never raise."""

    def notice(self, text: str) -> None:
        """A sentence for people: what was found, chosen or given up."""
        ...

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Set-up work before the first trial, e.g. rows tokenised."""
        ...

    def begin(self, plan: StudyPlan, finished: int, best: tuple[int, float] | None) -> None:
        """The study is open; `finished` trials are there already, `best` is (number, value) of the best of them."""
        ...

    def expecting(self, estimator: Estimator) -> None:
        """Trials are about to run; `estimator.left()` says how long they will, from any thread."""
        ...

    def started(self, trial: TrialSpec) -> None:
        """A trial was handed to the executor."""
        ...

    def reported(self, report: Report, decision: Decision) -> None:
        """A report came and was answered."""
        ...

    def ended(self, trial: int, outcome: Outcome, state: TrialState) -> None:
        """A trial left the executor; `state` is what the study says of it now."""
        ...

    def finish(self) -> None:
        """No more trials; the display may let go of the terminal. Always called, once."""
        ...


class Silent:
    """The listener that shows nothing."""

    def notice(self, text: str) -> None:
        """Nothing."""

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Nothing."""

    def begin(self, plan: StudyPlan, finished: int, best: tuple[int, float] | None) -> None:
        """Nothing."""

    def expecting(self, estimator: Estimator) -> None:
        """Nothing."""

    def started(self, trial: TrialSpec) -> None:
        """Nothing."""

    def reported(self, report: Report, decision: Decision) -> None:
        """Nothing."""

    def ended(self, trial: int, outcome: Outcome, state: TrialState) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""
