"""What the trials of a study have taken so far, live or from its database, and the Speed that follows.

Costs add up by batch size: seconds and tokens of training, seconds and rows of evaluation. Where each trial has an engine to
itself, each batch size is a point of the pass times; where trials share passes, what a token took on average is all that can be
told, and it holds for passes as they were.
Does not know simulated time. Cost: additions; reading a study is two queries.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from sweeper.records import Action, Report, ReportKind, TrialSpec, TrialState
from sweeper.study.plan import StudyPlan
from sweeper.study.read import StudyReader
from sweeper.sweep.forecast.outlook import Begun, History, judged_of, was_judged
from sweeper.sweep.forecast.speed import OBSERVED_SPREAD, Passes, Speed


class Observed:
    """Sums of costs. Reports carry running totals of a stay; `note` adds what is new."""

    def __init__(self) -> None:
        self._trained: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])  # batch -> seconds, tokens
        self._read = [0.0, 0.0]  # seconds, rows
        self._last: dict[tuple[int, int], tuple[float, int]] = {}  # stay -> train seconds, tokens
        self._evaluated: dict[tuple[int, int], float] = {}

    @property
    def known(self) -> bool:
        """Whether both training and evaluation have been seen."""
        return self._read[1] > 0 and any(tokens > 0 for _, tokens in self._trained.values())

    def note(self, trial: TrialSpec, report: Report) -> None:
        """A report of a trial that runs now."""
        stay = (report.trial, report.attempt)
        seconds, tokens = self._last.get(stay, (0.0, 0))
        self.trained(_batch(trial.params.get("batch_size")), report.train_seconds - seconds, report.tokens - tokens)
        self._last[stay] = (report.train_seconds, report.tokens)
        if report.kind is not ReportKind.PROGRESS and report.rows:
            self.read(report.evaluate_seconds - self._evaluated.get(stay, 0.0), report.rows)
            self._evaluated[stay] = report.evaluate_seconds

    def trained(self, batch: int, seconds: float, tokens: int) -> None:
        """Training in batches of `batch` rows."""
        if seconds > 0 and tokens > 0:
            sums = self._trained[batch]
            sums[0] += seconds
            sums[1] += tokens

    def read(self, seconds: float, rows: int) -> None:
        """Evaluation."""
        if seconds > 0 and rows > 0:
            self._read[0] += seconds
            self._read[1] += rows

    def speed(self, frame: Speed) -> Speed:
        """`frame` with pass times and reading as observed, where they were."""
        found = frame
        if self._read[1] > 0:
            found = replace(found, read_seconds=self._read[0] / self._read[1])
        sums = {batch: (seconds, tokens) for batch, (seconds, tokens) in self._trained.items() if tokens > 0}
        if not sums:
            return found
        if frame.slots > 1:
            total = [sum(column) for column in zip(*sums.values(), strict=True)]
            return replace(found, passes=Passes([(1.0, total[0] / total[1])]), spread=OBSERVED_SPREAD)
        points = [(size := frame.pass_tokens(batch), size * seconds / tokens) for batch, (seconds, tokens) in sums.items()]
        return replace(found, passes=Passes(points), spread=OBSERVED_SPREAD)


def history_of(reader: StudyReader, plan: StudyPlan, frame: Speed, driven: float = 0.0) -> tuple[History, Observed]:
    """What is known of a study that has run before. Trials that a dead driver left RUNNING will go on as WAITING ones.

    Rows read are counted from the clock of each trial, at the numbers of `frame`.
    """
    observed = Observed()
    trials = reader.trials(plan.name)
    for trial in trials:
        observed.trained(_batch(trial.params.get("batch_size")), trial.train_seconds, trial.tokens)
        reached = [nominal for nominal in trial.evaluations if nominal <= trial.nominal]
        whole = sum(nominal in trial.rungs or nominal == trial.evaluations[-1] for nominal in reached)
        observed.read(trial.evaluate_seconds, whole * frame.full_rows + (len(reached) - whole) * frame.between_rows)
    decisions = [one for one in reader.decisions(plan.name) if one.pruner and one.trial and was_judged(one.pruner, one.cutoff)]
    decided = [(one.nominal, one.action is Action.STOP) for one in decisions]
    history = History(
        started=len(trials),
        ended=sum(trial.state.is_finished() for trial in trials),
        failed=sum(trial.state is TrialState.FAIL for trial in trials),
        begun=tuple(Begun(t.number, t.params, t.examples) for t in trials if not t.state.is_finished()),
        judged=judged_of(decided, plan.rungs),
        reached={rung: sum(rung in trial.rungs and rung <= trial.nominal for trial in trials) for rung in plan.rungs},
        driven=driven,
        device_seconds=sum(trial.seconds for trial in trials),
        tried=tuple(trial.params for trial in trials),
    )
    return history, observed


def _batch(value: object) -> int:
    return max(1, int(value)) if isinstance(value, int | float) else 1
