"""What a study is: space, search, objective and clocks, resolved from a spec and facts about its data.

Purpose: the one object that the gateway needs, and that is stored with the study so that reading it needs no spec file.
Does not know: databases, Optuna, or how a trial trains. Costs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Protocol

from sweeper.records import ParamValue
from sweeper.spec.metrics import METRICS, Direction
from sweeper.spec.models import Bound, SearchSpec, SweepSpec, TrainingSpec
from sweeper.spec.space import SEARCHABLE, Dimension, FloatDimension, IntDimension, ValuesDimension
from sweeper.study.rungs import clock, default_every, study_rungs

_DIMENSIONS: dict[str, type[FloatDimension] | type[IntDimension] | type[ValuesDimension]] = {
    "float": FloatDimension,
    "int": IntDimension,
    "values": ValuesDimension,
}


class StudyIdentity(Protocol):
    """What makes a study this one: a hash, and the parts it was made of, so that a difference can be named."""

    @property
    def hash(self) -> str:
        """Hash over all parts."""
        ...

    @property
    def parts(self) -> Mapping[str, Any]:
        """Part name -> its content or hash."""
        ...


@dataclass(frozen=True)
class StudyPlan:
    """Everything that a study needs; JSON-serialisable. Budgets and clocks are training examples seen."""

    name: str
    identity: str
    space: Mapping[str, Dimension]
    defaults: Mapping[str, ParamValue]  # every searchable key; trial 0
    search: SearchSpec
    metrics: tuple[str, ...]
    directions: tuple[Direction, ...]
    at: str
    constraints: Mapping[str, Bound]
    train_rows: int
    examples: int | None  # training.examples: the budget of every trial, in place of epochs
    full: int  # the largest budget that the space allows
    evaluate_every: int
    chance: float | None  # the objective of a model that learned nothing
    spec: Mapping[str, object]  # secrets masked
    data_fingerprint: str
    versions: Mapping[str, str]
    parts: Mapping[str, Any] = field(default_factory=dict)  # of the identity

    @property
    def rungs(self) -> tuple[int, ...]:
        """Where the pruner decides, in nominal examples."""
        return study_rungs(self.search.rungs, self.full, self.evaluate_every)

    def budget(self, params: Mapping[str, ParamValue]) -> int:
        """Examples that a trial with these parameters trains on."""
        return _budget(self.examples, params["epochs"], self.train_rows)

    def clock(self, examples: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Evaluations and rungs of a trial of so many examples."""
        return clock(examples, self.evaluate_every, self.rungs)

    def to_json(self) -> str:
        """The plan as JSON; `plan_from_json` reads it."""
        flat = {item.name: getattr(self, item.name) for item in fields(self)}
        flat["space"] = {key: value.model_dump(mode="json") for key, value in self.space.items()}
        flat["constraints"] = {key: value.model_dump(mode="json") for key, value in self.constraints.items()}
        flat["search"] = self.search.model_dump(mode="json")
        return json.dumps(flat, sort_keys=True, default=_plain)

    def differences(self, other: StudyPlan) -> dict[str, tuple[object, object]]:
        """Field -> (own, other) for all that differs, search settings one by one (`search.trials`)."""
        mine, theirs = json.loads(self.to_json()), json.loads(other.to_json())
        for flat in (mine, theirs):
            flat.update({f"search.{key}": value for key, value in flat.pop("search").items()})
            flat.pop("spec")
        return {key: (mine.get(key), theirs.get(key)) for key in sorted({*mine, *theirs}) if mine.get(key) != theirs.get(key)}


def plan_from_json(text: str) -> StudyPlan:
    """The plan that `StudyPlan.to_json` wrote."""
    flat = json.loads(text)
    known = {item.name for item in fields(StudyPlan)}
    flat = {key: value for key, value in flat.items() if key in known}
    flat["space"] = {key: _DIMENSIONS[value["type"]].model_validate(value) for key, value in flat["space"].items()}
    flat["constraints"] = {key: Bound.model_validate(value) for key, value in flat["constraints"].items()}
    flat["search"] = SearchSpec.model_validate(flat["search"])
    flat["metrics"], flat["directions"] = tuple(flat["metrics"]), tuple(flat["directions"])
    return StudyPlan(**flat)


def plan_study(
    spec: SweepSpec,
    *,
    identity: StudyIdentity | str,
    spec_document: Mapping[str, object],
    train_rows: int,
    chance: float | None,
    data_fingerprint: str,
    versions: Mapping[str, str],
) -> StudyPlan:
    """Resolves a spec to a plan.

    `identity` is the study's hash, or an object with `hash` and `parts`; `spec_document` the spec with its secrets masked;
    `train_rows` the rows of the training side; `chance` the objective of a model that learned nothing, where it is known.
    """
    defaults = default_params(spec.training)
    epochs = _largest(spec.space.get("epochs"), defaults["epochs"])
    full = _budget(spec.training.examples, epochs, train_rows)
    metrics = tuple(spec.objective.metrics)
    return StudyPlan(
        name=spec.name,
        identity=identity if isinstance(identity, str) else identity.hash,
        space=dict(spec.space),
        defaults=defaults,
        search=spec.search,
        metrics=metrics,
        directions=_directions(metrics, spec.objective.direction),
        at=spec.objective.at,
        constraints=dict(spec.objective.constraints),
        train_rows=train_rows,
        examples=spec.training.examples,
        full=full,
        evaluate_every=spec.evaluate.every or default_every(full),
        chance=chance,
        spec=dict(spec_document),
        data_fingerprint=data_fingerprint,
        versions=dict(versions),
        parts={} if isinstance(identity, str) else dict(identity.parts),
    )


def default_params(training: TrainingSpec) -> dict[str, ParamValue]:
    """Every searchable key with the value of trial 0."""
    params: dict[str, ParamValue] = {key: getattr(training, key) for key in sorted(SEARCHABLE)}
    params["learning_rate"] = training.default_learning_rate()
    return params


def resized(plan: StudyPlan, **search: object) -> StudyPlan:
    """The plan with other search settings, e.g. `trials=40`."""
    return replace(plan, search=SearchSpec.model_validate({**plan.search.model_dump(), **search}))


def _budget(examples: int | None, epochs: ParamValue, train_rows: int) -> int:
    return examples if examples is not None else max(1, round(float(epochs or 0) * train_rows))


def _largest(dimension: Dimension | None, default: ParamValue) -> float:
    if dimension is None:
        return float(default or 0)
    values = dimension.values if isinstance(dimension, ValuesDimension) else [dimension.high]
    return max(float(default or 0), *(float(value) for value in values if value is not None))


def _directions(metrics: tuple[str, ...], asked: str | list[Any]) -> tuple[Direction, ...]:
    if isinstance(asked, list):
        return tuple(asked)
    if asked == "minimize" or asked == "maximize":
        return tuple(asked for _ in metrics)  # type: ignore[misc]
    return tuple(METRICS[name].direction if name in METRICS else "maximize" for name in metrics)


def _plain(value: object) -> object:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else dict(value) if isinstance(value, Mapping) else str(value)  # type: ignore[call-overload]
