"""What to try next: the samplers, each as if built anew for every ask and seeded by (study seed, trial number).

Purpose: turn the finished trials into one configuration. A draw depends on the seed, the number and the finished trials in the
order they finished, all of which the ledger keeps, so that any ask can be replayed. Optuna's samplers run on a study in memory
that holds the finished trials only (tpe where it can without a study, see `tpe.py`): an ask writes nothing, and trials that still
run change no suggestion.

    grid, qmc          enumerated by our own count of trials; never twice the same configuration
    random, tpe, gp    Optuna's; a repeated configuration is drawn again, then the rest of a finite space is walked
    cmaes              Optuna's; its state lives in the memory study only and is rebuilt by asking again in the same order

Does not know the database or what a trial costs. Cost: 7 ms an ask at some hundred finished trials (tpe, a 2 GHz core), gp seconds.
"""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweeper.errors import StudyError
from sweeper.records import ParamValue
from sweeper.spec.space import ValuesDimension
from sweeper.study.plan import StudyPlan
from sweeper.study.space import Params, Signature, Space, grid_values, suggested
from sweeper.study.tpe import Tpe, fits, only_value

REDRAWS = 20
"""How often is drawn again for a configuration not seen before. Then the rest of a finite space is walked, and a space without
end, which repeats itself only where conditions switch its ranges off, gets the last draw."""

_GUIDED = 5
_SOBOL_STEP = 10_007
_GRID_ORDER = 1_000_000


@dataclass(frozen=True)
class Draw:
    """A configuration and what it depended on: the seed and how many trials had finished; `index` for grid and qmc."""

    params: Params
    seed: int
    finished: int
    redraws: int = 0
    index: int | None = None

    def asked(self) -> dict[str, object]:
        """What is stored so that the draw can be replayed."""
        return {"seed": self.seed, "finished": self.finished, "redraws": self.redraws, "index": self.index}


def derive_seed(study_seed: int, *parts: object) -> int:
    """A seed in [0, 2**31) from the study's seed and whatever tells two uses apart."""
    text = "/".join(str(part) for part in (study_seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


class Sampling:
    """One study's sampler. `learn` gives it each finished trial, once, in the order they finished."""

    def __init__(self, plan: StudyPlan) -> None:
        self.space = Space(plan.space, plan.defaults)
        self._search = plan.search
        self._single = len(plan.directions) == 1
        check_sampler(plan, self.space)
        quiet_optuna()
        self.finished = 0
        self._memory = optuna.create_study(directions=list(plan.directions), sampler=RandomSampler(seed=0))
        self._tpe: Tpe | None = None
        if self._search.sampler == "tpe" and self._single and not self.space.conditional and fits():
            maximize = plan.directions[0] == "maximize"
            self._tpe = Tpe(self.space.distributions, maximize=maximize, startup=plan.search.startup_trials)
        self._notes: dict[int, dict[str, object]] = {}
        self._order: list[int] | None = None

    def learn(self, number: int, trial: FrozenTrial) -> None:
        """Adds a finished trial as Optuna has it; FAIL teaches nothing, nor does one outside the space."""
        self.finished += 1
        notes = self._notes.pop(number, {})
        if trial.state is TrialState.FAIL or not self.space.teaches(trial.params):
            return
        taught = create_trial(
            state=trial.state,
            values=trial.values,
            params=trial.params,
            distributions=trial.distributions,
            system_attrs={**trial.system_attrs, **notes},
            intermediate_values=trial.intermediate_values,
        )
        if self._tpe is not None:
            self._tpe.learn(taught)
        else:
            self._memory.add_trial(taught)

    def learned(self) -> list[FrozenTrial]:
        """The trials that the sampler learns from, as it has them."""
        if self._tpe is not None:
            return self._tpe.trials
        return [trial for trial in self._memory.get_trials(deepcopy=False) if trial.state is not TrialState.FAIL]

    def draw(self, number: int, used: set[Signature], asked_before: int) -> Draw | None:
        """The configuration of trial `number`; None if nothing new is left.

        `used`: configurations that have been tried. `asked_before`: how many trials the sampler has drawn so far.
        """
        if self._search.sampler == "grid":
            return self._grid(used)
        if self._search.sampler == "qmc":
            return self._qmc(used, asked_before)
        if not self.space.dimensions:
            return self._first_unused(number, used)
        finite = self.space.is_finite()
        for redraw in range(REDRAWS + 1):
            params = self._ask(number, redraw)
            if self.space.signature(params) not in used or (redraw == REDRAWS and not finite):
                return Draw(params, derive_seed(self._search.seed, number, redraw), self.finished, redraw)
        return self._first_unused(number, used)

    def replay(self, number: int, redraws: int) -> Params:
        """Asks again as `draw` did for trial `number`, for samplers that remember their asks (cmaes)."""
        params: Params = {}
        for redraw in range(redraws + 1):
            params = self._ask(number, redraw)
        return params

    def exhausted(self, used: set[Signature]) -> bool:
        """Whether every configuration has been tried."""
        return self.space.is_finite() and next(self.space.unused(used), None) is None

    @property
    def remembers(self) -> bool:
        """Whether asks must be replayed in order after a restart."""
        return self._search.sampler == "cmaes"

    def _ask(self, number: int, redraw: int) -> Params:
        seed = derive_seed(self._search.seed, number, redraw)
        # What tpe and gp think best among listed values is the same for any seed: they would propose it for ever.
        guided = (redraw < _GUIDED or self.remembers) and self._search.sampler != "random"
        if not guided:
            return self.space.suggest(_random(RandomSampler(seed=seed)))
        if self._tpe is not None:
            return self.space.suggest(_drawn(self._tpe.draw(seed)))
        self._memory.sampler = self._build(seed)
        ghost = self._memory.ask()
        params = self.space.suggest(partial(suggested, ghost))
        if self.remembers:
            # Where cmaes keeps which generation a trial belongs to; `learn` gives it back with the trial's result.
            attributes = self._memory.get_trials(deepcopy=False)[ghost.number].system_attrs
            self._notes[number] = {key: value for key, value in attributes.items() if key.startswith("cma:")}
        # The ghost must not stay: a RUNNING trial would change what gp suggests next.
        self._memory.tell(ghost, state=TrialState.FAIL)
        return params

    def _build(self, seed: int) -> BaseSampler:
        name, startup = self._search.sampler, self._search.startup_trials
        if name == "tpe":
            group = bool(self.space.conditional) and self._single
            return TPESampler(seed=seed, n_startup_trials=startup, constant_liar=False, group=group)
        if name == "gp":
            return GPSampler(
                seed=seed,
                n_startup_trials=startup,
                independent_sampler=RandomSampler(seed=seed),
                warn_independent_sampling=False,
            )
        assert name == "cmaes", name
        return CmaEsSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)

    def _grid(self, used: set[Signature]) -> Draw | None:
        if self._order is None:
            points = self.space.points() or 0
            # A shuffled order, so that a sweep that ends early has seen all of the grid and not one corner of it.
            self._order = random.Random(self._search.seed).sample(range(points), min(points, _GRID_ORDER))
        for index, point in enumerate(self._order):
            params = self.space.point(point)
            if self.space.signature(params) not in used:
                return Draw(params, self._search.seed, self.finished, index=index)
        return None

    def _qmc(self, used: set[Signature], asked_before: int) -> Draw | None:
        if self.exhausted(used):
            return None
        finite = self.space.is_finite()
        for redraw in range(REDRAWS + 1):
            # The step is odd: with an even one all redraws would share their coordinates' leading digits.
            index = asked_before + redraw * _SOBOL_STEP
            params = self.space.from_unit(_sobol(len(self.space.dimensions), self._search.seed, index))
            if self.space.signature(params) not in used or (redraw == REDRAWS and not finite):
                return Draw(params, self._search.seed, self.finished, redraw, index)
        return self._first_unused(asked_before, used)

    def _first_unused(self, number: int, used: set[Signature]) -> Draw | None:
        left = list(self.space.unused(used)) if self.space.is_finite() else []
        seed = derive_seed(self._search.seed, number, "rest")
        return Draw(random.Random(seed).choice(left), seed, self.finished, REDRAWS) if left else None


def check_sampler(plan: StudyPlan, space: Space) -> None:
    """Raises StudyError, in one sentence, if the sampler cannot search this space."""
    name = plan.search.sampler
    if name == "grid":
        _check_grid(plan, space)
    if name == "cmaes":
        _check_cmaes(plan, space)
    if name == "qmc" and not space.dimensions:
        raise StudyError("search.sampler is qmc, but space is empty; name at least one key to search")


def _check_grid(plan: StudyPlan, space: Space) -> None:
    open_ended = [key for key, dimension in space.dimensions.items() if grid_values(dimension) is None]
    if open_ended:
        raise StudyError(f"search.sampler is grid, but {', '.join(open_ended)} has no step; give step or values, or take tpe")


def _check_cmaes(plan: StudyPlan, space: Space) -> None:
    listed = [key for key, dimension in space.dimensions.items() if isinstance(dimension, ValuesDimension)]
    if listed:
        raise StudyError(f"search.sampler is cmaes, which needs numeric ranges, but {', '.join(listed)} has values; take tpe or gp")
    if space.conditional:
        keys = ", ".join(sorted(space.conditional))
        raise StudyError(f"search.sampler is cmaes, which needs every key in every trial, but {keys} has `when`; take tpe")
    if len(plan.directions) > 1:
        raise StudyError(f"search.sampler is cmaes, which takes one metric, but objective has {len(plan.directions)}; take tpe")
    if not space.dimensions:
        raise StudyError("search.sampler is cmaes, but space is empty; name at least one key to search")


def quiet_optuna() -> None:
    """Keeps Optuna's log lines and its warnings about experimental features from the user's terminal."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def ordered_asks(asks: Mapping[int, Mapping[str, object]], finished: Sequence[int]) -> list[tuple[str, int]]:
    """The order in which asks and endings came: [("ask", number) | ("end", number)].

    `asks`: number -> what was stored with its draw; `finished`: numbers in the order they finished.
    """
    steps: list[tuple[str, int]] = []
    ended = 0
    for number in sorted(asks):
        known = asks[number].get("finished")
        until = known if isinstance(known, int) else 0
        steps += [("end", other) for other in finished[ended:until]]
        ended = max(ended, until)
        steps.append(("ask", number))
    return steps + [("end", other) for other in finished[ended:]]


def _random(sampler: RandomSampler) -> Callable[[str, BaseDistribution], ParamValue]:
    """Draws from a sampler that no study has to be there for."""
    nobody, nothing = cast(optuna.Study, None), cast(FrozenTrial, None)

    def value_of(key: str, dist: BaseDistribution) -> ParamValue:
        value: ParamValue = only_value(dist) if dist.single() else sampler.sample_independent(nobody, nothing, key, dist)
        return value

    return value_of


def _drawn(values: Mapping[str, ParamValue]) -> Callable[[str, BaseDistribution], ParamValue]:
    """Draws what was drawn already."""
    return lambda key, _: values[key]


def _sobol(dimensions: int, seed: int, index: int) -> list[float]:
    from scipy.stats import qmc

    engine = qmc.Sobol(dimensions, scramble=True, seed=seed)
    if index:
        engine.fast_forward(index)
    return [float(value) for value in engine.random(1)[0]]
