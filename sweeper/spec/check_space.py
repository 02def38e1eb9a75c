"""Checks of the space and of how it is searched: values a trial could not train with, conditions that cannot hold, samplers
that cannot search such a space, and configurations to try first that lie outside it.

Does not know Optuna. Cost: a millisecond.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from pydantic import ValidationError

from sweeper.errors import Problem
from sweeper.spec.models import SweepSpec, TrainingSpec
from sweeper.spec.space import SEARCHABLE, Dimension, FloatDimension, Value, ValuesDimension, contains, ends
from sweeper.spec.translate import came, problems_of, unknown_dimension

Trust = Callable[[str], bool]

_TARGETS = re.compile(r"^[A-Za-z_][\w.]*(\s*,\s*[A-Za-z_][\w.]*)*$")
_KINDS = {"int": "whole numbers", "float": "numbers", "str": "words"}
_LORA_ONLY = ("rank", "alpha", "targets")
_CLOSEST = 0.01
"""Rungs nearer to each other than this share of the budget decide twice on the same evidence."""


def check_space(spec: SweepSpec, trust: Trust) -> Iterator[Problem]:
    """Keys, values and conditions of every dimension."""
    for key, dimension in spec.space.items():
        path = f"space.{key}"
        if key not in SEARCHABLE:
            yield Problem(path, unknown_dimension(key))
            continue
        yield from _values(path, key, dimension)
        yield from _condition(spec, key, dimension, trust)
        if key in _LORA_ONLY and spec.training.method == "full" and trust("training.method"):
            yield Problem(path, f"{key} belongs to method: lora, but training.method is full; take it out of the space or use lora")
    if "epochs" in spec.space and spec.training.examples is not None and trust("training.examples"):
        yield Problem("space.epochs", "epochs are searched while training.examples fixes the budget; keep one of the two")
    yield from _cycles(spec)


def check_search(spec: SweepSpec, trust: Trust) -> Iterator[Problem]:
    """Whether the sampler can search the space, the pruner can decide, and the search can end."""
    search, space_sound = spec.search, trust("space")
    if space_sound and trust("search.sampler"):
        yield from _sampler(spec)
    ends = search.trials is not None or search.time is not None or search.budget.limits
    if not ends and search.sampler != "grid" and trust("search"):
        yield Problem("search.trials", "neither trials, time nor budget is given, so the search would never end; give one of them")
    if search.budget.money is not None and search.budget.price is None and trust("search.budget"):
        yield Problem(
            "search.budget.price",
            f"money is {search.budget.money:g}, but no price came; add price: what an hour of a GPU, or of a core, costs",
        )
    if not spec.space and space_sound and (search.trials or 2) > 1 and trust("search.trials"):
        yield Problem(
            "space",
            "nothing is searched, so all trials would be the default; add e.g. learning_rate: {low: 1e-5, high: 1e-3, log: true}",
        )
    if trust("search"):
        yield from _pruner(spec)
        if trust("objective.metric"):
            yield from _several_metrics(spec)
    if trust("search.enqueue"):
        yield from _enqueue(spec, trust)


def _values(path: str, key: str, dimension: Dimension) -> Iterator[Problem]:
    kind = SEARCHABLE[key]
    if isinstance(dimension, ValuesDimension):
        candidates: list[tuple[str, Value]] = [(f"{path}.values", value) for value in dimension.values]
    elif kind == "str":
        yield Problem(path, f"a range came, but {key} takes words; list them, e.g. {key}: [{_example(key)}]")
        return
    elif kind == "int" and isinstance(dimension, FloatDimension):
        yield Problem(
            path,
            f"a range from {dimension.low} to {dimension.high} came, but {key} takes whole numbers; write them without a point",
        )
        return
    else:
        candidates = [(f"{path}.low", dimension.low), (f"{path}.high", dimension.high)]
    for where, value in candidates:
        message = bad_value(key, value)
        if message is not None:
            yield Problem(where, message)


def bad_value(key: str, value: Value) -> str | None:
    """Why no trial can train with `value` for the searchable `key`; None if one can."""
    kind = SEARCHABLE[key]
    right = {"int": type(value) is int, "float": type(value) in (int, float), "str": isinstance(value, str)}[kind]
    if not right:
        return f"{came(value)} came, but {key} takes {_KINDS[kind]}"
    try:
        TrainingSpec.model_validate({key: value})
    except ValidationError as error:
        (_, problem), *_ = problems_of(error, ("training",))
        return f"{problem.message} ({key})"
    return bad_targets(str(value)) if key == "targets" else None


def bad_targets(targets: str) -> str | None:
    """Why `targets` can name no modules; None if it is a group of modules or a list of names."""
    if _TARGETS.match(targets):
        return None
    return f"{targets!r} came; allowed: all, attention, mlp, qv, or module names joined by commas, e.g. q_proj,v_proj"


def _example(key: str) -> str:
    return "constant, linear, cosine" if key == "schedule" else "attention, all"


def _condition(spec: SweepSpec, key: str, dimension: Dimension, trust: Trust) -> Iterator[Problem]:
    for other, wanted in (dimension.when or {}).items():
        path = f"space.{key}.when.{other}"
        if other == key:
            yield Problem(path, f"{key} depends on itself; name another key of the space, or remove when")
        elif other not in SEARCHABLE:
            yield Problem(path, unknown_dimension(other))
        elif other not in spec.space:
            if trust(f"space.{other}"):
                searched = ", ".join(name for name in spec.space if name != key) or "nothing else"
                yield Problem(path, f"{other} is not searched, so {key} cannot depend on it; searched besides {key}: {searched}")
        elif isinstance(found := spec.space[other], FloatDimension) and found.step is None:
            yield Problem(
                path, f"{other} is a range of real numbers, which no single value is ever drawn from; give it values or a step"
            )
        else:
            for value in wanted:
                if not contains(found, value):
                    yield Problem(path, f"{came(value)} came, but space.{other} never takes it; it takes {describe(found)}")
            if not wanted:
                yield Problem(path, f"no value came, so {key} would never be searched; list values of {other}")


def describe(dimension: Dimension) -> str:
    """A dimension in a few words: its values, or its range with its step."""
    if isinstance(dimension, ValuesDimension):
        return ", ".join(came(value) for value in dimension.values)
    step = f" in steps of {dimension.step}" if dimension.step is not None else ""
    return f"{dimension.low} to {dimension.high}{step}"


def _cycles(spec: SweepSpec) -> Iterator[Problem]:
    """One problem for each ring of conditions, at its first key."""
    done: set[str] = set()
    for start in spec.space:
        trail: list[str] = []
        waiting = [(start, 0)]
        while waiting:
            key, depth = waiting.pop()
            trail = trail[:depth]
            if key in trail:
                ring = trail[trail.index(key) :]
                if len(ring) > 1 and not done & set(ring):
                    yield Problem(
                        f"space.{ring[0]}.when",
                        f"these keys depend on each other in a ring: {' -> '.join([*ring, key])}; remove one when",
                    )
                done |= set(ring)
                continue
            trail.append(key)
            if key in spec.space and key not in done:
                waiting += [(other, depth + 1) for other in spec.space[key].when or {}]
        done.add(start)


def _sampler(spec: SweepSpec) -> Iterator[Problem]:
    sampler = spec.search.sampler
    if sampler == "grid":
        for key, dimension in spec.space.items():
            if isinstance(dimension, FloatDimension) and dimension.step is None:
                yield Problem(f"space.{key}", "a range without points came, but sampler: grid needs them; add step, or list values")
    if sampler != "cmaes":
        return
    for key, dimension in spec.space.items():
        if isinstance(dimension, ValuesDimension):
            yield Problem(f"space.{key}", "values came, but sampler: cmaes searches ranges only; give low and high, or use tpe")
        if dimension.when:
            yield Problem(
                f"space.{key}.when", "a condition came, but sampler: cmaes searches all keys at once; remove when, or use tpe"
            )
    if len(spec.space) == 1:
        yield Problem("search.sampler", "cmaes came for one searched key, but it needs at least two; add a key, or use tpe")
    if len(spec.objective.metrics) > 1:
        yield Problem(
            "search.sampler", f"cmaes came with {len(spec.objective.metrics)} metrics, but it optimises one; use tpe, or one metric"
        )


def _pruner(spec: SweepSpec) -> Iterator[Problem]:
    search, examples = spec.search, spec.training.examples
    if search.pruner == "threshold" and search.lower is None and search.upper is None:
        yield Problem("search.pruner", "threshold came without a bound; give search.lower, search.upper or both")
    if search.lower is not None and search.upper is not None and search.lower >= search.upper:
        yield Problem("search.lower", f"{search.lower} came with upper {search.upper}, but lower must be below upper; swap them")
    batch = largest_batch(spec)
    for low, high in zip(search.rungs, search.rungs[1:], strict=False):
        if high - low < _CLOSEST:
            yield Problem(
                "search.rungs",
                f"{low} and {high} are too close to tell trials apart; keep rungs {_CLOSEST} or more from each other",
            )
        elif examples is not None and (high - low) * examples < batch:
            apart = round((high - low) * examples)
            yield Problem(
                "search.rungs",
                f"{low} and {high} are {apart} examples apart, less than a batch of {batch}; spread them or train on more",
            )


def _several_metrics(spec: SweepSpec) -> Iterator[Problem]:
    search, count = spec.search, len(spec.objective.metrics)
    if count < 2:
        return
    why = f"with {count} metrics, but a trial that is behind in one may lead in another"
    if "pruner" in search.model_fields_set and search.pruner != "none":
        yield Problem("search.pruner", f"{search.pruner} came {why}; write pruner: none, or give one metric")
    if "enabled" in search.collapse.model_fields_set and search.collapse.enabled:
        yield Problem("search.collapse.enabled", f"true came {why}; leave it out, or give one metric")


def largest_batch(spec: SweepSpec) -> int:
    """The largest batch size that any trial may train with, trial 0 included."""
    return largest(spec, "batch_size", spec.training.batch_size)


def largest(spec: SweepSpec, key: str, default: int) -> int:
    """The largest value of a whole-number `key` that any trial may have, trial 0's `default` included."""
    return max(size for size in (default, *ends(spec.space.get(key))) if type(size) is int)


def _enqueue(spec: SweepSpec, trust: Trust) -> Iterator[Problem]:
    search = spec.search
    for index, configuration in enumerate(search.enqueue):
        path = f"search.enqueue.{index}"
        if not configuration:
            yield Problem(path, "an empty configuration came; name at least one key of the space (trial 0 is the default already)")
        for key, value in configuration.items():
            if key not in SEARCHABLE:
                yield Problem(f"{path}.{key}", unknown_dimension(key))
            elif key not in spec.space:
                if trust(f"space.{key}"):
                    yield Problem(
                        f"{path}.{key}",
                        f"{key} is not in the space, and only searched keys differ between trials; add it or remove it here",
                    )
            elif not contains(spec.space[key], value):
                yield Problem(
                    f"{path}.{key}", f"{came(value)} came, but space.{key} takes {describe(spec.space[key])}; change one of the two"
                )
    count = len(search.enqueue)
    if search.trials is not None and count >= search.trials and trust("search.trials"):
        yield Problem(
            "search.enqueue", f"{count} came besides trial 0, but search.trials is {search.trials}; raise it to {count + 1} or more"
        )
