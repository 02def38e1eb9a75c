"""What to stop early: each pruner looks at one trial's values and the others', and returns a record.

Purpose: decide, and say why. Does not act, keeps no state, and knows no database: the same values give the same judgement.
Where Optuna has the pruner too, the decision is the same (tests hold them side by side). Values are of the first metric of
the objective, by nominal examples.

    halving (asha)   at a rung, keeps the best 1/reduction of those that have reached it so far; never waits for a cohort
    hyperband        halving in brackets, each of which spares one rung more; a trial's bracket is a hash of its number
    median           at a rung, stops what is worse at its best than the median of the completed ones there
    percentile       the same with another share
    patience         at every evaluation: no gain of min_delta for `patience` evaluations
    threshold        at every evaluation: outside lower, upper
    none             never

Cost: microseconds; at a rung, linear in the trials that reached it.
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sweeper.records import TrialState
from sweeper.study.plan import StudyPlan


@dataclass(frozen=True)
class Curve:
    """A trial as a pruner sees it: `values` by nominal examples, the first report of each."""

    number: int
    state: TrialState
    values: Mapping[int, float]


@dataclass(frozen=True)
class Judgement:
    """Whether to stop, and the evidence: value, rung, cut-off, rank (1 is best), numbers of the trials compared with."""

    stop: bool
    pruner: str
    reason: str
    value: float | None = None
    rung: int | None = None
    cutoff: float | None = None
    rank: int | None = None
    compared: tuple[int, ...] = field(default=())

    def evidence(self) -> dict[str, object]:
        """The record as plain values, for the ledger and for Decision.evidence."""
        return {
            "pruner": self.pruner,
            "value": self.value,
            "rung": self.rung,
            "cutoff": self.cutoff,
            "rank": self.rank,
            "compared": list(self.compared),
        }


def judge(plan: StudyPlan, trial: Curve, step: int, others: Sequence[Curve], *, at_rung: bool) -> Judgement:
    """Judges `trial` at its evaluation `step`, given all other trials. A value that is no number counts as the worst."""
    name = plan.search.pruner
    maximize = plan.directions[0] == "maximize"
    if name == "threshold":
        return _threshold(plan, trial, step)
    if name == "patience":
        return _patience(plan, trial, step, maximize)
    if not at_rung or name == "none":
        return Judgement(False, name, "", trial.values.get(step), step)
    if name in ("median", "percentile"):
        return _percentile(plan, trial, step, others, maximize)
    if name == "hyperband":
        return _hyperband(plan, trial, step, others, maximize)
    return _halving(plan, name, trial, step, others, maximize)


def _halving(plan: StudyPlan, name: str, trial: Curve, rung: int, others: Sequence[Curve], maximize: bool) -> Judgement:
    value = trial.values[rung]
    there = {curve.number: curve.values[rung] for curve in others if rung in curve.values and curve.number != trial.number}
    there[trial.number] = value
    compared = tuple(sorted(number for number in there if number != trial.number))
    ranked = sorted(there.values(), key=lambda other: _badness(other, maximize))
    rank = 1 + sum(_badness(other, maximize) < _badness(value, maximize) for other in there.values())
    seen = len(there)
    if seen < plan.search.min_trials:
        reason = f"{seen} of {plan.search.min_trials} trials have reached rung {rung}, too few to judge"
        return Judgement(False, name, reason, value, rung, None, rank, compared)
    keep = max(1, seen // plan.search.reduction)
    cutoff = ranked[keep - 1]
    stop = math.isnan(value) or _badness(value, maximize) > _badness(cutoff, maximize)
    verb = "is not" if stop else "is"
    reason = f"{value:.6g} at rung {rung} {verb} among the best {keep} of {seen} (rank {rank}, cut-off {cutoff:.6g})"
    return Judgement(stop, name, reason, value, rung, cutoff, rank, compared)


def _hyperband(plan: StudyPlan, trial: Curve, rung: int, others: Sequence[Curve], maximize: bool) -> Judgement:
    own = bracket(plan, trial.number)
    if rung in plan.rungs[:own]:
        return Judgement(False, "hyperband", f"bracket {own} is not judged at rung {rung}", trial.values[rung], rung)
    return _halving(plan, "hyperband", trial, rung, [curve for curve in others if bracket(plan, curve.number) == own], maximize)


def bracket(plan: StudyPlan, number: int) -> int:
    """Hyperband's bracket of a trial: 0 is judged at every rung, bracket b spares the first b, the last spares all.

    Trials fall into brackets by a hash of study and number, in the shares of Hyperband (arXiv 1603.06560, algorithm 1) as
    Optuna computes them.
    """
    count = len(plan.rungs) + 1
    shares = [math.ceil(count * plan.search.reduction ** (count - 1 - b) / (count - b)) for b in range(count)]
    left = binascii.crc32(f"{plan.name}_{number}".encode()) % sum(shares)
    for index, share in enumerate(shares):
        left -= share
        if left < 0:
            return index
    raise AssertionError("unreachable: the remainder is below the sum of the shares")


def _percentile(plan: StudyPlan, trial: Curve, rung: int, others: Sequence[Curve], maximize: bool) -> Judgement:
    name = plan.search.pruner
    share = 50.0 if name == "median" else plan.search.percentile
    best = _best(list(trial.values.values()), maximize)
    there = {
        curve.number: curve.values[rung]
        for curve in others
        if curve.state is TrialState.COMPLETE and rung in curve.values and curve.number != trial.number
    }
    compared = tuple(sorted(there))
    known = [value for value in there.values() if not math.isnan(value)]
    if math.isnan(best):
        return Judgement(True, name, f"no evaluation up to rung {rung} was a number", best, rung, None, None, compared)
    if len(there) < plan.search.min_trials or not known:
        reason = f"{len(there)} of {plan.search.min_trials} completed trials have passed rung {rung}, too few to judge"
        return Judgement(False, name, reason, best, rung, None, None, compared)
    cutoff = float(np.percentile(known, 100 - share if maximize else share))
    stop = _badness(best, maximize) > _badness(cutoff, maximize)
    rank = 1 + sum(_badness(value, maximize) < _badness(best, maximize) for value in known)
    verb = "worse than" if stop else "no worse than"
    cut = f"the cut-off {cutoff:.6g} of {len(known)} completed trials (rank {rank})"
    reason = f"best value {best:.6g} up to rung {rung} is {verb} {cut}"
    return Judgement(stop, name, reason, best, rung, cutoff, rank, compared)


def _patience(plan: StudyPlan, trial: Curve, step: int, maximize: bool) -> Judgement:
    values = [trial.values[key] for key in sorted(trial.values)]
    patience, delta = plan.search.patience, plan.search.min_delta
    if len(values) <= patience + 1:
        return Judgement(False, "patience", "", values[-1], step)
    before, after = _best(values[: -patience - 1], maximize), _best(values[-patience - 1 :], maximize)
    if math.isnan(before) or math.isnan(after):
        return Judgement(False, "patience", "", values[-1], step)
    cutoff = before - delta if maximize else before + delta
    stop = _badness(after, maximize) > _badness(cutoff, maximize)
    reason = f"best of the last {patience + 1} evaluations {after:.6g} is worse than {cutoff:.6g}, the best before" if stop else ""
    return Judgement(stop, "patience", reason, after, step, cutoff)


def _threshold(plan: StudyPlan, trial: Curve, step: int) -> Judgement:
    value = trial.values[step]
    lower, upper = plan.search.lower, plan.search.upper
    if lower is not None and not value >= lower:
        return Judgement(True, "threshold", f"{value:.6g} at {step} examples is below search.lower {lower:.6g}", value, step, lower)
    if upper is not None and not value <= upper:
        return Judgement(True, "threshold", f"{value:.6g} at {step} examples is above search.upper {upper:.6g}", value, step, upper)
    return Judgement(False, "threshold", "", value, step)


def _badness(value: float, maximize: bool) -> float:
    """Orders values from best to worst; what is no number comes last."""
    if math.isnan(value):
        return math.inf
    return -value if maximize else value


def _best(values: Sequence[float], maximize: bool) -> float:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan
    return max(known) if maximize else min(known)
