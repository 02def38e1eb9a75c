"""Optuna's TPE, drawing what it draws to the last bit, with what it works out of the finished trials kept from ask to ask.

Purpose: asked through a study, Optuna copies a trial some ten times, sorts all finished trials, and reads each of their parameters
anew. Here trials are kept in the order of their values, parameters in one array, and both densities until another trial finishes,
so that several asks in a row share them. What is computed from those, and how, stays Optuna's own code.
For one objective, and trials that all have the same keys. It stands on names that Optuna does not promise to keep: `fits` says
whether they are those of the version installed; with another one the caller asks through a study.
Does not know the space or what an ask is for. Cost: 7 ms an ask at a few hundred finished trials, on a core at 2 GHz.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe import sampler as optuna_tpe
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

VERSION = "5.0."
"""Begins the version of Optuna whose names these are."""


def fits() -> bool:
    """Whether `Tpe` can be used with the Optuna installed."""
    return optuna.__version__.startswith(VERSION)


class Tpe(TPESampler):
    """See above. `learn` gives it each finished trial, once."""

    def __init__(self, distributions: Mapping[str, BaseDistribution], *, maximize: bool, startup: int) -> None:
        super().__init__(seed=0, n_startup_trials=startup, constant_liar=False)
        self.trials: list[FrozenTrial] = []
        self._distributions = dict(distributions)
        self._searched = {key: dist for key, dist in sorted(distributions.items()) if not dist.single()}
        self._columns = {key: column for column, key in enumerate(self._searched)}
        self._values = np.empty((64, len(self._searched)))  # a row for each trial, as Optuna stores them
        self._ranked: list[list[tuple[Any, int]]] = [[], [], []]  # complete, pruned, infeasible: best first
        self._densities: dict[tuple[str, ...], tuple[Any, Any]] = {}
        direction = StudyDirection.MAXIMIZE if maximize else StudyDirection.MINIMIZE
        self._study = cast(
            optuna.Study,
            SimpleNamespace(
                direction=direction,
                directions=[direction],
                _get_trials=lambda deepcopy=True, states=None, use_cache=False: self.trials,
                _is_multi_objective=lambda: False,
            ),
        )

    def learn(self, trial: FrozenTrial) -> None:
        """Adds a finished trial, COMPLETE or PRUNED, with every key."""
        number = trial.number = len(self.trials)
        self.trials.append(trial)
        if number == len(self._values):
            self._values = np.concatenate([self._values, np.empty_like(self._values)])
        self._values[number] = [dist.to_internal_repr(trial.params[key]) for key, dist in self._searched.items()]
        infeasible = optuna_tpe._get_infeasible_trial_score(trial)
        if infeasible > 0:
            insort(self._ranked[2], (infeasible, number))
        elif trial.state is TrialState.COMPLETE:
            value = cast(float, trial.value)
            insort(self._ranked[0], (-value if self._study.direction is StudyDirection.MAXIMIZE else value, number))
        else:
            insort(self._ranked[1], (optuna_tpe._get_pruned_trial_score(trial, self._study), number))
        self._densities.clear()

    def draw(self, seed: int) -> dict[str, Any]:
        """A value for every key, as a sampler built anew with this seed suggests them."""
        for state in (self._rng, self._random_sampler._rng):
            state.rng.seed(seed)
        ghost = cast(FrozenTrial, None)  # of the trial that asks TPE wants to know nothing
        searched = self._searched if self.trials else {}
        found = self.sample_relative(self._study, ghost, searched)
        for key, dist in self._distributions.items():
            if dist.single():
                found[key] = only_value(dist)
            elif key not in found:
                found[key] = self.sample_independent(self._study, ghost, key, dist)
        return found

    def _sample(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        keys = tuple(search_space)
        if keys not in self._densities:
            self._densities[keys] = self._estimate(search_space)
        below, above = self._densities[keys]
        samples = below.sample(self._rng.rng, self._n_ei_candidates)
        best = self._compare(samples, self._compute_acquisition_func(samples, below, above))
        return {key: dist.to_external_repr(best[key]) for key, dist in search_space.items()}

    def _estimate(self, search_space: dict[str, BaseDistribution]) -> tuple[Any, Any]:
        """The densities of the best trials and of the others."""
        count = len(self.trials)
        left = optuna_tpe.default_gamma(count)
        is_best = np.zeros(count, dtype=bool)
        for ranked in self._ranked:
            best = [number for _, number in ranked[:left]]
            is_best[best] = True
            left -= len(best)
        return self._density(search_space, is_best), self._density(search_space, ~is_best)

    def _density(self, search_space: dict[str, BaseDistribution], which: np.ndarray) -> Any:
        rows = self._values[: len(self.trials)][which]
        seen = {key: rows[:, self._columns[key]] for key in search_space}
        return self._parzen_estimator_cls(seen, search_space, self._parzen_estimator_parameters)


def only_value(dist: BaseDistribution) -> Any:
    """The value of a distribution that has a single one."""
    return dist.choices[0] if isinstance(dist, CategoricalDistribution) else dist.low  # type: ignore[attr-defined]
