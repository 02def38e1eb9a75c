"""The search space as samplers see it: Optuna distributions, conditions, grid points, and which configurations are the same.

Does not know how a sampler draws, nor what a key does in training. Cost: microseconds, but a grid is enumerated lazily and
may be long.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from sweeper.errors import StudyError, nearest
from sweeper.records import ParamValue
from sweeper.spec.space import SEARCHABLE, Dimension, FloatDimension, IntDimension, ValuesDimension

Params = dict[str, ParamValue]
Signature = tuple[tuple[str, str], ...]

ENUMERABLE = 100_000
"""A space with more points than this is treated as one that never runs out."""


class Space:
    """The dimensions of a study in an order in which each comes after those that it depends on.

    Raises StudyError if conditions form a circle or name a key that cannot be searched.
    """

    def __init__(self, dimensions: Mapping[str, Dimension], defaults: Mapping[str, ParamValue]) -> None:
        self.dimensions = {key: dimensions[key] for key in _order(dimensions)}
        self.distributions = {key: distribution(value) for key, value in self.dimensions.items()}
        self.conditional = frozenset(key for key, value in dimensions.items() if value.when)
        self._defaults = dict(defaults)

    def is_active(self, key: str, params: Mapping[str, ParamValue]) -> bool:
        """Whether `key` is searched where the others have the values of `params` (full, or all that `key` depends on)."""
        when = self.dimensions[key].when or {}
        return all(
            parent in params and any(coerce(parent, value) == params[parent] for value in allowed)
            for parent, allowed in when.items()
        )

    def resolve(self, drawn: Mapping[str, ParamValue]) -> Params:
        """Every searchable key: as drawn where it is active, else its default. Values get the type that training expects."""
        params = {key: coerce(key, value) for key, value in self._defaults.items()}
        for key in self.dimensions:
            if key in drawn and self.is_active(key, params):
                params[key] = coerce(key, drawn[key])
        return params

    def complete(self, configuration: Mapping[str, ParamValue]) -> Params:
        """A configuration that a person gave: its own values, within the space or not, and defaults for the rest."""
        given = {key: coerce(key, value) for key, value in configuration.items()}
        return {**{key: coerce(key, value) for key, value in self._defaults.items()}, **given}

    def drawn(self, params: Mapping[str, ParamValue]) -> Params:
        """The part of a full configuration that lies within the space, in the space's own values: what a sampler may learn."""
        found: Params = {}
        for key, dimension in self.dimensions.items():
            if self.is_active(key, params):
                inside, value = match(dimension, params[key])
                if inside:
                    found[key] = value
        return found

    def teaches(self, drawn: Mapping[str, ParamValue]) -> bool:
        """Whether a trial has every unconditional key; one that lacks any would shrink the space that samplers infer."""
        return all(key in drawn or key in self.conditional for key in self.dimensions)

    def signature(self, params: Mapping[str, ParamValue]) -> Signature:
        """Equal for two configurations exactly if they differ in no searched key that is active."""
        return tuple((key, repr(_rounded(params[key]))) for key in self.dimensions if self.is_active(key, params))

    def points(self) -> int | None:
        """How many grid points there are (a key that is switched off counts as often as it has values); None if infinite."""
        count = 1
        for dimension in self.dimensions.values():
            values = grid_values(dimension)
            if values is None:
                return None
            count *= len(values)
        return count

    def point(self, index: int) -> Params:
        """Grid point `index`, counting like an odometer whose last key turns fastest. Full configuration."""
        drawn: Params = {}
        for key, dimension in reversed(self.dimensions.items()):
            values = grid_values(dimension) or []
            index, position = divmod(index, len(values))
            drawn[key] = values[position]
        return self.resolve(drawn)

    def unused(self, used: set[Signature]) -> Iterator[Params]:
        """Configurations of a finite space that are not in `used`, each once."""
        seen = set(used)
        for values in itertools.product(*(grid_values(dimension) or [] for dimension in self.dimensions.values())):
            params = self.resolve(dict(zip(self.dimensions, values, strict=True)))
            signature = self.signature(params)
            if signature not in seen:
                seen.add(signature)
                yield params

    def is_finite(self) -> bool:
        """Whether all configurations can be tried, and are few enough to be counted."""
        points = self.points()
        return points is not None and points <= ENUMERABLE

    def from_unit(self, unit: list[float]) -> Params:
        """The full configuration at a point of the unit cube, one coordinate in [0, 1) per dimension, in the space's order."""
        return self.resolve({key: _at(value, u) for (key, value), u in zip(self.dimensions.items(), unit, strict=True)})

    def suggest(self, value_of: Callable[[str, BaseDistribution], ParamValue]) -> Params:
        """Draws the active keys, parents first. Full configuration."""
        drawn: Params = {}
        for key, dist in self.distributions.items():
            if key not in self.conditional or self.is_active(key, self.resolve(drawn)):
                value = value_of(key, dist)
                stepped = isinstance(dist, FloatDistribution) and dist.step is not None
                drawn[key] = float(f"{value:.12g}") if stepped else value
        return self.resolve(drawn)


def distribution(dimension: Dimension) -> BaseDistribution:
    """The Optuna distribution of a dimension; a range that its step does not divide ends at the last point within it."""
    if isinstance(dimension, ValuesDimension):
        return CategoricalDistribution(tuple(dimension.values))
    if isinstance(dimension, IntDimension):
        step = dimension.step or 1
        high = dimension.low + (dimension.high - dimension.low) // step * step
        return IntDistribution(dimension.low, high, log=dimension.log, step=step)
    if dimension.step is None:
        return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    steps = _steps(dimension)
    last = float(Decimal(str(dimension.low)) + steps * Decimal(str(dimension.step)))
    return FloatDistribution(dimension.low, last, step=dimension.step)


def grid_values(dimension: Dimension) -> list[ParamValue] | None:
    """All values of a dimension in order; None for an interval without a step."""
    if isinstance(dimension, ValuesDimension):
        return list(dimension.values)
    if isinstance(dimension, IntDimension):
        return list(range(dimension.low, dimension.high + 1, dimension.step or 1))
    if dimension.low == dimension.high:
        return [dimension.low]
    if dimension.step is None:
        return None
    low, step = Decimal(str(dimension.low)), Decimal(str(dimension.step))
    return [float(low + i * step) for i in range(_steps(dimension) + 1)]


def match(dimension: Dimension, value: ParamValue) -> tuple[bool, ParamValue]:
    """Whether `value` lies in the dimension, and the dimension's own writing of it (0 for 0.0)."""
    if isinstance(dimension, ValuesDimension):
        found = [own for own in dimension.values if own == value and isinstance(own, bool) == isinstance(value, bool)]
        return (True, found[0]) if found else (False, None)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False, None
    grid = grid_values(dimension)
    if grid is not None:
        near = [own for own in grid if isinstance(own, int | float) and _rounded(own) == _rounded(float(value))]
        return (True, near[0]) if near else (False, None)
    return dimension.low <= value <= dimension.high, float(value)


def coerce(key: str, value: ParamValue) -> ParamValue:
    """`value` in the type that training expects for `key` (16 for an alpha written 16 becomes 16.0)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    kind = SEARCHABLE.get(key)
    if kind == "float":
        return float(value)
    return int(value) if kind == "int" and float(value).is_integer() else value


def _order(dimensions: Mapping[str, Dimension]) -> list[str]:
    """Keys by name, each after those that its condition names. Raises StudyError."""
    ordered: list[str] = []
    waiting = sorted(dimensions)
    for key in waiting:
        for parent in dimensions[key].when or {}:
            if parent not in SEARCHABLE:
                raise StudyError(f"space.{key}.when names {parent!r}, which cannot be searched; {nearest(parent, SEARCHABLE)}")
    while waiting:
        ready = [key for key in waiting if all(p in ordered or p not in dimensions for p in dimensions[key].when or {})]
        if not ready:
            raise StudyError(f"the conditions of {', '.join(waiting)} depend on each other in a circle; drop one `when`")
        ordered += ready
        waiting = [key for key in waiting if key not in ready]
    return ordered


def _steps(dimension: FloatDimension) -> int:
    return int((Decimal(str(dimension.high)) - Decimal(str(dimension.low))) / Decimal(str(dimension.step)))


def _at(dimension: Dimension, unit: float) -> ParamValue:
    values = grid_values(dimension)
    if isinstance(dimension, IntDimension) and dimension.log:
        lowest, highest = math.log(dimension.low - 0.5), math.log(dimension.high + 0.5)
        return min(dimension.high, max(dimension.low, round(math.exp(lowest + unit * (highest - lowest)))))
    if values is not None:
        return values[min(len(values) - 1, int(unit * len(values)))]
    assert isinstance(dimension, FloatDimension)
    if dimension.log:
        return math.exp(math.log(dimension.low) + unit * (math.log(dimension.high) - math.log(dimension.low)))
    return dimension.low + unit * (dimension.high - dimension.low)


def suggested(trial: optuna.Trial, key: str, dist: BaseDistribution) -> ParamValue:
    """What an Optuna trial suggests for a key."""
    if isinstance(dist, FloatDistribution):
        return trial.suggest_float(key, dist.low, dist.high, step=dist.step, log=dist.log)
    if isinstance(dist, IntDistribution):
        return trial.suggest_int(key, dist.low, dist.high, step=dist.step, log=dist.log)
    assert isinstance(dist, CategoricalDistribution)
    choice: ParamValue = trial.suggest_categorical(key, dist.choices)
    return choice


def _rounded(value: ParamValue) -> ParamValue:
    return float(f"{value:.12g}") if isinstance(value, float) else value
