"""Has a trial collapsed: fallen back to chance after having been better, and stayed there?

In replays of recorded runs none of 263 that had fallen back for two evaluations recovered, while 20 of 256 that had not yet
risen at the second evaluation still did: so one that never rose above chance has not collapsed.
Does not know the pruner. Costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from sweeper.study.plan import StudyPlan
from sweeper.study.pruners import Curve, Judgement


def judge_collapse(plan: StudyPlan, trial: Curve, step: int) -> Judgement | None:
    """The judgement that stops a collapsed trial at `step`, or None. Needs `plan.chance`, the objective at chance."""
    rule = plan.search.collapse
    if not rule.enabled or plan.chance is None:
        return None
    values = [trial.values[key] for key in sorted(trial.values)]
    if not has_collapsed(values, plan.chance, rule.margin, rule.evaluations, maximize=plan.directions[0] == "maximize"):
        return None
    reason = f"collapsed: fell back to chance ({plan.chance:.4g}) and stayed there for {rule.evaluations} evaluations"
    return Judgement(True, "collapse", reason, trial.values[step], step, plan.chance)


def has_collapsed(values: Sequence[float], chance: float, margin: float, evaluations: int, *, maximize: bool) -> bool:
    """Whether the last `evaluations` values lie within `margin` of chance or worse, after an earlier one was better."""
    if len(values) <= evaluations:
        return False
    better = [value > chance + margin if maximize else value < chance - margin for value in values]
    return any(better[:-evaluations]) and not any(better[-evaluations:])
