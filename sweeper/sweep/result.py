"""What a sweep ended with: counts, the winner, and the default configuration beside it on the same validation rows.

Does not know how trials were run. Cost: two parquet parts and 2,000 resamples, well under a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sweeper.engine.depot import FolderDepot
from sweeper.engine.outcomes import RowOutcomes, from_parquet
from sweeper.evaluation.significance import compare
from sweeper.records import Comparison, TrialState, Verdict
from sweeper.study.plan import StudyPlan
from sweeper.study.read import StudyReader, TrialView
from sweeper.sweep.home import Home

DEFAULT_TRIAL = 0
"""Number of the trial that trains the default configuration, in every study."""


@dataclass(frozen=True)
class SweepResult:
    """A finished or interrupted sweep. `best` is None while nothing has completed; `comparison` while the default has not."""

    study: str
    home: Path
    storage: str
    plan: StudyPlan
    trials: tuple[TrialView, ...]
    best: TrialView | None
    default: TrialView | None
    comparison: Comparison | None
    adapter: Path | None
    finished: bool
    seconds: float
    mlflow: str | None = None
    notices: tuple[str, ...] = ()

    @property
    def states(self) -> Mapping[TrialState, int]:
        """Trials by state."""
        return Counter(trial.state for trial in self.trials)

    def verdict(self) -> str:
        """One sentence: is the best configuration better than the default one, on the same validation rows?"""
        best, default = self.best, self.default
        if best is None:
            reasons = [t.reason for t in self.trials if t.state is TrialState.FAIL and t.reason]
            return "No trial has completed" + (f"; the first failure was: {reasons[0]}" if reasons else ".")
        if default is None or default.state is not TrialState.COMPLETE:
            return f"Trial {best.number} is the best; the default configuration (trial {DEFAULT_TRIAL}) did not complete."
        if best.number == default.number:
            return "The default configuration is the best one found: no better than the default."
        both = self.comparison
        if both is None:
            return f"Trial {best.number} is the best; it could not be compared with the default row by row."
        figures = (
            f"{both.metric} {both.other:.4g} against {both.base:.4g} of the default on the same {both.rows} validation rows: "
            f"difference {both.difference:+.4g}, paired 95 % interval [{both.low:+.4g}, {both.high:+.4g}]"
        )
        if both.verdict is Verdict.BETTER:
            return (
                f"Trial {best.number} is better than the default: {figures}. It was chosen on these rows, so expect a little less."
            )
        if both.verdict is Verdict.WORSE:
            return f"Trial {best.number} is worse than the default: {figures}."
        return f"Trial {best.number} is no better than the default: {figures}, which includes no difference."


def sweep_result(
    study: str,
    home: Home,
    storage: str,
    *,
    finished: bool,
    seconds: float,
    mlflow: str | None = None,
    notices: tuple[str, ...] = (),
) -> SweepResult:
    """Reads the study and judges its winner against the default configuration."""
    reader = StudyReader(storage)
    plan = reader.plan(study)
    trials = tuple(reader.trials(study))
    best = reader.best(study)
    default = next((t for t in trials if t.number == DEFAULT_TRIAL), None)
    comparison = None
    if best is not None and default is not None and best.number != default.number and default.state is TrialState.COMPLETE:
        comparison = compare_trials(home, plan, default, best)
    adapter = home.depot / best.adapter if best is not None and best.adapter else None
    return SweepResult(
        study, home.root, storage, plan, trials, best, default, comparison, adapter, finished, seconds, mlflow, notices
    )


def describe_states(states: Mapping[TrialState, int]) -> str:
    """`4 COMPLETE, 8 PRUNED` in the order of the enum, those that occur."""
    return ", ".join(f"{states[state]} {state}" for state in TrialState if states.get(state))


def compare_trials(home: Home, plan: StudyPlan, base: TrialView, other: TrialView) -> Comparison | None:
    """Paired comparison of two completed trials; None where one has no per-row outcomes, or the metric has no rows."""
    rows = [row_outcomes(home, trial) for trial in (base, other)]
    if rows[0] is None or rows[1] is None or plan.metrics[0] not in ("loss", "perplexity", "accuracy", "macro_f1", "exact_match"):
        return None
    return compare(
        rows[0],
        rows[1],
        plan.metrics[0],
        base_trial=base.number,
        other_trial=other.number,
        maximize=plan.directions[0] == "maximize",
    )


def row_outcomes(home: Home, trial: TrialView) -> RowOutcomes | None:
    """Per-row outcomes of a trial's last evaluation, or None if there are none."""
    if not trial.outcomes:
        return None
    try:
        files = FolderDepot(home.depot).get(trial.outcomes)
    except FileNotFoundError:
        return None
    return from_parquet(next(data for name, data in sorted(files.items()) if name.endswith(".parquet")))
