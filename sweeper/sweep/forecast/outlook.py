"""What is to come, as far as anybody can know: configurations to be drawn, and how their learning curves will go.

Configurations. The default one, enqueued ones and whatever grid, qmc and random will draw are known now: the study's own sampler
is asked. So are the start-up trials of tpe, gp and cmaes. What those draw later depends on results; it is drawn evenly from the
space, since only batch size and epochs matter to the time.

The prior on learning curves. Nobody knows the real ones, so each trial's score at a share x of the full budget is

    3 (1 - exp(-4 x))  +  (1 - x) E  +  x F  +  0.15 N(x)        E, F, N(x) ~ Normal(0, 1), independent

All trials improve alike, an early order E gives way to a final order F, and each evaluation has noise. Hyperparameters do not
matter to the order, no trial fails or collapses, and `threshold` stops none, as the score has no scale. Where three trials or more
of this study were judged at a rung (not those that came while there were too few to judge), the share that it has kept there
decides instead; where some have failed, as many fail. Trials that have been at a rung before are compared with, at drawn scores.

Does not know time or engines. Cost: one draw of the study's sampler for each configuration known now, once; microseconds then.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sweeper.records import ParamValue, TrialState
from sweeper.study.plan import StudyPlan
from sweeper.study.pruners import Curve, judge
from sweeper.study.samplers import Sampling

FEWEST_JUDGED = 3
_NEED_OTHERS = ("halving", "median", "percentile")
_DRAWN_AHEAD = 200
_ENUMERATED = ("grid", "qmc", "random")


@dataclass(frozen=True)
class Begun:
    """A trial that has not ended: it goes on after `examples`."""

    number: int
    params: Mapping[str, ParamValue]
    examples: int = 0


@dataclass(frozen=True)
class History:
    """What a study knows from its own trials. `judged`: rung -> (kept, stopped); `reached`: rung -> trials that have been there."""

    started: int = 0  # trials there are, ended or not
    ended: int = 0
    failed: int = 0
    begun: tuple[Begun, ...] = ()
    judged: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    reached: Mapping[int, int] = field(default_factory=dict)
    driven: float = 0.0  # seconds of driver time so far, for search.time and search.budget
    device_seconds: float = 0.0
    tried: tuple[Mapping[str, ParamValue], ...] = ()


class Configurations:
    """The configuration of each trial to come."""

    def __init__(self, plan: StudyPlan, history: History) -> None:
        self._plan = plan
        sampling = Sampling(plan)
        self._space = sampling.space
        self._known = self._draw_ahead(sampling, history)
        self.limit = self._count(history)

    def at(self, number: int, chance: random.Random) -> Mapping[str, ParamValue] | None:
        """The configuration of trial `number`; None where the space or `search.trials` ends before."""
        if self.limit is not None and number >= self.limit:
            return None
        known = self._known.get(number)
        if known is not None:
            return known
        if not self._space.dimensions:
            return self._space.resolve({})
        return self._space.from_unit([chance.random() for _ in self._space.dimensions])

    def _draw_ahead(self, sampling: Sampling, history: History) -> dict[int, Mapping[str, ParamValue]]:
        plan, search = self._plan, self._plan.search
        fixed = [self._space.resolve({}), *(self._space.complete(given) for given in search.enqueue)]
        ahead = search.trials if search.trials is not None else _DRAWN_AHEAD
        if search.sampler not in _ENUMERATED:
            ahead = min(ahead, len(fixed) + search.startup_trials)
        found: dict[int, Mapping[str, ParamValue]] = dict(enumerate(fixed[:ahead]))
        used = {self._space.signature(params) for params in (*found.values(), *history.tried)}
        self._ended = False
        for number in range(max(len(fixed), history.started), min(ahead, _DRAWN_AHEAD)):
            draw = sampling.draw(number, used, max(0, number - len(fixed))) if plan.space else None
            if draw is None:
                self._ended = True
                break
            found[number] = draw.params
            used.add(self._space.signature(draw.params))
        self._last = max((history.started, *(number + 1 for number in found)))
        return found

    def _count(self, history: History) -> int | None:
        trials = self._plan.search.trials
        points = self._space.points() if self._space.is_finite() else None
        ends = [trials, self._last if self._ended else None]
        if points is not None and not self._ended:
            ends.append(max(history.started, points + 1 + len(self._plan.search.enqueue)))
        known = [end for end in ends if end is not None]
        return min(known) if known else None


class Course:
    """The curves of one simulated sweep, and the study's pruner on them."""

    def __init__(self, plan: StudyPlan, history: History, chance: random.Random) -> None:
        self._plan = plan
        self._chance = chance
        self._sign = 1.0 if plan.directions[0] == "maximize" else -1.0
        self._orders: dict[int, tuple[float, float]] = {}
        self._curves: dict[int, Curve] = {}
        kept = {rung: counts for rung, counts in history.judged.items() if sum(counts) >= FEWEST_JUDGED}
        self._survival = {rung: chance.betavariate(1 + k, 1 + s) for rung, (k, s) in sorted(kept.items())}
        sound = history.ended - history.failed
        self._failing = chance.betavariate(history.failed, 1 + sound) if history.failed else 0.0
        self._every = plan.search.pruner == "patience"
        self._judged = plan.search.pruner not in ("none", "threshold")
        self._remember(history)

    def _remember(self, history: History) -> None:
        """Curves of the trials that have been at rungs before, under numbers that no trial has."""
        for index in range(max(history.reached.values(), default=0)):
            number = -1 - index
            there = [rung for rung, count in sorted(history.reached.items()) if index < count]
            values = {rung: self._score(number, rung) for rung in there}
            state = TrialState.COMPLETE if index < history.ended else TrialState.RUNNING
            self._curves[number] = Curve(number, state, values)

    def fails_at(self, budget: int) -> float:
        """Examples after which the trial fails; infinite for most."""
        return self._chance.uniform(0, budget) if self._failing and self._chance.random() < self._failing else math.inf

    def stops(self, number: int, nominal: int, at_rung: bool) -> bool:
        """Draws the trial's score at `nominal` and judges it."""
        if not self._judged:
            return False
        if at_rung and nominal in self._survival:
            return number != 0 and self._chance.random() > self._survival[nominal]
        if not (at_rung or self._every):
            return False
        curve = self._curves.setdefault(number, Curve(number, TrialState.RUNNING, {}))
        curve.values[nominal] = self._score(number, nominal)  # type: ignore[index]
        others = [other for other in self._curves.values() if other.number != number]
        return number != 0 and judge(self._plan, curve, nominal, others, at_rung=at_rung).stop

    def completed(self, number: int) -> None:
        """The trial has used its budget."""
        if number in self._curves:
            self._curves[number] = Curve(number, TrialState.COMPLETE, self._curves[number].values)

    def _score(self, number: int, nominal: int) -> float:
        gauss = self._chance.gauss
        early, late = self._orders.setdefault(number, (gauss(0, 1), gauss(0, 1)))
        x = min(1.0, nominal / self._plan.full)
        return self._sign * (3 * (1 - math.exp(-4 * x)) + (1 - x) * early + x * late + gauss(0, 0.15))


def was_judged(pruner: object, cutoff: object) -> bool:
    """Whether a decision at a rung tells how many it keeps: not where there were too few trials for a cut-off."""
    return cutoff is not None or pruner not in _NEED_OTHERS


def judged_of(decisions: Sequence[tuple[int, bool]], rungs: Sequence[int]) -> dict[int, tuple[int, int]]:
    """(kept, stopped) by rung, of decisions as (nominal, whether it stopped)."""
    found: dict[int, tuple[int, int]] = {}
    for nominal, stopped in decisions:
        if nominal in rungs:
            kept, gone = found.get(nominal, (0, 0))
            found[nominal] = (kept + (not stopped), gone + stopped)
    return found
