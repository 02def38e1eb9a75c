"""The search space: which keys of `training` may be searched, and over what.

Knows nothing of Optuna: `study/space.py` turns a `Dimension` into a distribution. Costs nothing.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

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
    """Base of every section of a spec: frozen; unknown keys, infinite numbers and switches in place of numbers are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, raw: Any) -> Any:
        # Python counts true as 1, and so does pydantic: `batch_size: true` must not train with batches of one row.
        if not isinstance(raw, dict):
            return raw
        fields = {field.alias or name: field for name, field in cls.model_fields.items()}
        return {
            key: str(value).lower()
            if isinstance(value, bool) and key in fields and not _takes_bool(fields[key].annotation)
            else value
            for key, value in raw.items()
        }


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

_DIMENSION: TypeAdapter[FloatDimension | IntDimension | ValuesDimension] = TypeAdapter(Dimension)


def read_dimension(raw: Any) -> FloatDimension | IntDimension | ValuesDimension:
    """A dimension from its stored JSON values, as `model_dump(mode="json")` gives them."""
    return _DIMENSION.validate_python(raw)


def ends(dimension: Dimension | None) -> list[Value]:
    """The values that a key may have, or both ends of its range; none where it is not searched."""
    if dimension is None:
        return []
    return list(dimension.values) if isinstance(dimension, ValuesDimension) else [dimension.low, dimension.high]


def contains(dimension: Dimension, value: Value) -> bool:
    """Whether a trial may be given `value` for this dimension: of its type, within its bounds, and on its steps."""
    if isinstance(dimension, ValuesDimension):
        return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in dimension.values)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if isinstance(dimension, IntDimension) and value != int(value):
        return False
    if not dimension.low <= value <= dimension.high:
        return False
    if dimension.step is None:
        return True
    steps = (value - dimension.low) / dimension.step
    return abs(steps - round(steps)) < 1e-9 * max(1.0, steps)


def _takes_bool(annotation: Any) -> bool:
    return annotation is bool or annotation is Any or any(_takes_bool(part) for part in get_args(annotation))


def _check_range(low: float, high: float, log: bool, step: float | None) -> None:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"low is {low} and high is {high}, but both must be finite numbers")
    if low > high:
        raise ValueError(f"low is {low} and high is {high}, but low must not be above high; swap them")
    if log and low <= 0:
        raise ValueError(f"low is {low} with log: true, but a log range must start above 0, e.g. at 1e-6")
    if log and step is not None:
        raise ValueError("log and step cannot stand together; drop one, or list the points under values")


def dimension_from_yaml(raw: Any, kind: str | None = None) -> Any:
    """Fills in `type` where the shape says it: a bare list or `values:` is values, low and high are a range.

    `kind` is the type of the key's values (see SEARCHABLE): whole bounds of a float key are still a real interval, so that
    `dropout: {low: 0, high: 0.5}` and `epochs: {low: 1, high: 3}` mean what they say. Without it two ints make an int range.
    """
    if isinstance(raw, list):
        return {"type": "values", "values": raw}
    if isinstance(raw, dict) and "type" not in raw:
        if "values" in raw:
            return {**raw, "type": "values"}
        low, high = raw.get("low"), raw.get("high")
        whole = all(isinstance(x, int) and not isinstance(x, bool) for x in (low, high))
        return {**raw, "type": "int" if whole and kind != "float" else "float"}
    return raw
