"""The search space: which keys of `training` may be searched, and over what.

Knows nothing of Optuna: `study/space.py` turns a `Dimension` into a distribution. Costs nothing.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Value = bool | int | float | str | None

SEARCHABLE: dict[str, str] = {
    "learning_rate": "float",
    "batch_size": "int",
    "weight_decay": "float",
    "dropout": "float",
    "rank": "int",
    "alpha": "float",
    "targets": "str",
    "warmup": "float",
    "schedule": "str",
    "beta1": "float",
    "beta2": "float",
    "clip": "float",
    "label_smoothing": "float",
    "epochs": "float",
}
"""Every key that may be searched, with the type of its values. All else is fixed for a study."""


class Strict(BaseModel):
    """Base of every section of a spec: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, protected_namespaces=())


class Conditional(Strict):
    """A dimension may depend on another: it is searched only where that one has one of these values."""

    when: dict[str, list[Value]] | None = Field(
        None, description="search this key only where another key has one of these values, e.g. {schedule: [cosine]}"
    )


class FloatDimension(Conditional):
    """A real interval [low, high]; `log: true` samples evenly in the exponent; `step` makes it a grid."""

    type: Literal["float"]
    low: float
    high: float
    log: bool = False
    step: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> FloatDimension:
        _check_range(self.low, self.high, self.log, self.step)
        return self


class IntDimension(Conditional):
    """Whole numbers low, low + step, ... up to high."""

    type: Literal["int"]
    low: int
    high: int
    log: bool = False
    step: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> IntDimension:
        _check_range(self.low, self.high, self.log, self.step)
        return self


class ValuesDimension(Conditional):
    """One of a list of values, without an order."""

    type: Literal["values"] = "values"
    values: list[Value] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> ValuesDimension:
        seen: list[Value] = []
        for value in self.values:
            if any(value == other and type(value) is type(other) for other in seen):
                raise ValueError(f"{value!r} stands twice in values; name each value once")
            seen.append(value)
        return self


Dimension = Annotated[FloatDimension | IntDimension | ValuesDimension, Field(discriminator="type")]


def _check_range(low: float, high: float, log: bool, step: float | None) -> None:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"low is {low} and high is {high}, but both must be finite numbers")
    if low > high:
        raise ValueError(f"low is {low} and high is {high}, but low must not be above high; swap them")
    if log and low <= 0:
        raise ValueError(f"low is {low} with log: true, but a log range must start above 0, e.g. at 1e-6")
    if log and step is not None:
        raise ValueError("log and step cannot stand together; drop one, or list the points under values")


def dimension_from_yaml(raw: Any) -> Any:
    """Fills in `type` where the shape says it: a bare list or `values:` is values, low and high are float unless both are ints."""
    if isinstance(raw, list):
        return {"type": "values", "values": raw}
    if isinstance(raw, dict) and "type" not in raw:
        if "values" in raw:
            return {**raw, "type": "values"}
        low, high = raw.get("low"), raw.get("high")
        whole = all(isinstance(x, int) and not isinstance(x, bool) for x in (low, high))
        return {**raw, "type": "int" if whole else "float"}
    return raw
