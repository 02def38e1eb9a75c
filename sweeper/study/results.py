"""From an outcome to a result: the trial's state, its reason and its values.

Does not know databases. Costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from sweeper.records import Ending, Outcome, TrialState
from sweeper.study.plan import StudyPlan
from sweeper.study.store import is_number


def metric_key(name: str) -> str:
    """The name of a metric in reports and outcomes."""
    return f"validation/{name}"


def result_of(plan: StudyPlan, outcome: Outcome, stopped: str, doomed: bool) -> tuple[TrialState, str, list[float] | None]:
    """State, reason and values (one per metric of the objective, for COMPLETE only).

    `stopped`: the reason of the decision that stopped the trial; `doomed`: that decision was about a value that is no number,
    so that the trial is FAIL however it ends. COMPLETED without a finite value of every objective and constraint is FAIL.
    """
    state = outcome.ending.state()
    if doomed and state.is_finished():
        return TrialState.FAIL, stopped, None
    if outcome.ending is not Ending.COMPLETED:
        fallback = "failed without a reason" if outcome.ending is Ending.FAILED else ""
        return state, outcome.reason or stopped or fallback, None
    for name in (*plan.metrics, *plan.constraints):
        if not is_number(outcome.metrics.get(metric_key(name))):
            return TrialState.FAIL, _unusable(name, outcome.metrics), None
    return state, outcome.reason, [float(outcome.metrics[metric_key(name)]) for name in plan.metrics]


def constraint_values(plan: StudyPlan, metrics: Mapping[str, float]) -> dict[str, float]:
    """How far each bound is overstepped, by `metric:min` and `metric:max`; 0 or below is met."""
    found: dict[str, float] = {}
    for name, bound in plan.constraints.items():
        value = float(metrics[metric_key(name)])
        if bound.min is not None:
            found[f"{name}:min"] = bound.min - value
        if bound.max is not None:
            found[f"{name}:max"] = value - bound.max
    return found


def _unusable(name: str, metrics: Mapping[str, float]) -> str:
    key = metric_key(name)
    return f"{key} is {metrics[key]} at the end" if key in metrics else f"{key} was not measured at the end"
