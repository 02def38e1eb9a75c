"""What a sweep ended with: counts, the winner, and the default configuration beside it on the same validation rows.

Does not know how trials were run. Cost: two parquet parts and 2,000 resamples, well under a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sweeper.engine.depot import FolderDepot
from sweeper.engine.outcomes import RowOutcomes, from_parquet
from sweeper.errors import UserError
from sweeper.evaluation.significance import compare
from sweeper.records import Comparison, TrialState, Verdict
from sweeper.study.plan import StudyPlan
from sweeper.study.read import StudyReader, TrialView
from sweeper.sweep.expected import FORECAST, TOOK, Expected, expected
from sweeper.sweep.home import Home
from sweeper.sweep.sharing import EVENT, Shared, shared

DEFAULT_TRIAL = 0
"""Number of the trial that trains the default configuration, in every study."""


@dataclass(frozen=True)
class SweepResult:
    """A finished or interrupted sweep.

    `drained` says which limit of search.budget ended it before its last trial; empty where none did.
    `best` is None while nothing has completed within the constraints. `comparison` sets the best trial against the default one
    (the next best, where the default itself is the best); None while there are no two.
    """

    study: str
    home: Path
    storage: str
    plan: StudyPlan
    trials: tuple[TrialView, ...]
    best: TrialView | None
    default: TrialView | None
    comparison: Comparison | None
    front: tuple[TrialView, ...]  # several metrics: trials that no other beats in all of them; else the best alone
    adapter: Path | None
    finished: bool
    seconds: float
    tracked: str | None = None  # where a person looks at the sweep in its tracker
    drained: str = ""
    expected: Expected | None = None  # the last run's forecast, and what it took
    shared: Shared | None = None  # which engines trained; None where every trial had a worker of its own

    @property
    def states(self) -> Mapping[TrialState, int]:
        """Trials by state."""
        return Counter(trial.state for trial in self.trials)

    def verdict(self) -> str:
        """A sentence: is the best configuration better than the default one, on the same rows? And another if it ended early."""
        return f"{self._compared()} {self._why_early()}".strip()

    def _why_early(self) -> str:
        if not self.drained:
            return ""
        waiting = sum(not trial.state.is_finished() for trial in self.trials)
        wait = f"; {waiting} trial{'s wait' if waiting > 1 else ' waits'} with what was trained" if waiting else ""
        return f"The sweep ended early: {self.drained}{wait}. A larger search.budget goes on."

    def _compared(self) -> str:
        best, default = self.best, self.default
        if best is None:
            return self._why_none()
        if default is None or default.state is not TrialState.COMPLETE:
            return f"Trial {best.number} is the best; the default configuration (trial {DEFAULT_TRIAL}) did not complete."
        if best.number == default.number and self.comparison is None:
            return "The default configuration is the best one found: no better than the default."
        both, metric = self.comparison, self.plan.metrics[0]
        if both is None:
            return (
                f"Trial {best.number} is the best, with {metric} {best.value:.4g} against {default.value:.4g} of the default; "
                f"without an interval, since {metric} is not compared row by row."
            )
        figures = (
            f"{both.metric} {both.other:.4g} against {both.base:.4g} of the default on the same {both.rows} validation rows: "
            f"difference {both.difference:+.4g}, paired 95 % interval [{both.low:+.4g}, {both.high:+.4g}]"
        )
        if best.number == default.number:
            return f"The default configuration is the best one found. Next comes trial {both.other_trial}: {figures}."
        if both.verdict is Verdict.BETTER:
            return (
                f"Trial {best.number} is better than the default: {figures}. It was chosen on these rows, so expect a little less."
            )
        if both.verdict is Verdict.WORSE:
            return f"Trial {best.number} is worse than the default: {figures}."
        return f"Trial {best.number} is no better than the default: {figures}, which includes no difference."

    def _why_none(self) -> str:
        completed = [trial for trial in self.trials if trial.state is TrialState.COMPLETE]
        if completed:
            bounds = [
                f"{name} {'at least' if side == 'min' else 'at most'} {value:g}"
                for name, bound in self.plan.constraints.items()
                for side, value in bound.model_dump(exclude_none=True).items()
            ]
            return (
                f"{len(completed)} trials have completed, but none meets the constraints ({', '.join(bounds)}); "
                "`sweeper trials` shows how far off they are: widen the space or loosen objective.constraints under another name."
            )
        reasons = [trial.reason for trial in self.trials if trial.state is TrialState.FAIL and trial.reason]
        if not reasons:
            return "No trial has completed."
        return (
            f"No trial has completed; the first failure was: {reasons[0]}. When that is mended, run it under another name, "
            "or with more search.trials."
        )


def sweep_result(
    study: str,
    home: Home,
    storage: str,
    *,
    finished: bool,
    seconds: float,
    tracked: str | None = None,
    drained: str = "",
) -> SweepResult:
    """Reads the study and judges its winner against the default configuration."""
    reader = StudyReader(storage)
    plan = reader.plan(study)
    trials = tuple(reader.trials(study))
    best = reader.best(study)
    default = next((t for t in trials if t.number == DEFAULT_TRIAL), None)
    comparison = None
    if best is not None and default is not None and default.state is TrialState.COMPLETE:
        other = best if best.number != default.number else _next_best(plan, trials)
        comparison = compare_trials(home, plan, default, other) if other is not None else None
    adapter = home.depot / best.adapter if best is not None and best.adapter else None
    return SweepResult(
        study=study,
        home=home.root,
        storage=storage,
        plan=plan,
        trials=trials,
        best=best,
        default=default,
        comparison=comparison,
        front=tuple(reader.best_front(study)),
        adapter=adapter,
        finished=finished,
        seconds=seconds,
        tracked=tracked,
        drained=drained,
        expected=expected(reader.events(study, FORECAST), reader.events(study, TOOK)),
        shared=shared(reader.events(study, EVENT)),
    )


def describe_states(states: Mapping[TrialState, int]) -> str:
    """`4 COMPLETE, 8 PRUNED` in the order of the enum, those that occur."""
    return ", ".join(f"{states[state]} {state}" for state in TrialState if states.get(state))


def _next_best(plan: StudyPlan, trials: Iterable[TrialView]) -> TrialView | None:
    """The best completed trial but the default one."""
    others = [trial for trial in trials if trial.number != DEFAULT_TRIAL and trial.value is not None and trial.feasible]
    sign = 1.0 if plan.directions[0] == "maximize" else -1.0
    return max(others, key=lambda trial: sign * (trial.value or 0.0), default=None)


def compare_trials(home: Home, plan: StudyPlan, base: TrialView, other: TrialView) -> Comparison | None:
    """Paired comparison of two completed trials; None where their per-row outcomes do not allow one."""
    rows = [row_outcomes(home, trial) for trial in (base, other)]
    if rows[0] is None or rows[1] is None:
        return None
    try:
        return compare(
            rows[0],
            rows[1],
            plan.metrics[0],
            base_trial=base.number,
            other_trial=other.number,
            maximize=plan.directions[0] == "maximize",
        )
    except UserError:
        # A metric that is no mean over rows; or a trial told by hand, measured on other rows.
        return None


def row_outcomes(home: Home, trial: TrialView) -> RowOutcomes | None:
    """Per-row outcomes of a trial's last evaluation, or None if there are none."""
    if not trial.outcomes:
        return None
    try:
        files = FolderDepot(home.depot).get(trial.outcomes)
    except FileNotFoundError:
        return None
    return from_parquet(next(data for name, data in sorted(files.items()) if name.endswith(".parquet")))
