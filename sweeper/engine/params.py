"""A trial's parameters as numbers of known type, read from `TrialSpec.params`.

Knows the searchable keys and nothing of where they came from. Costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sweeper.engine.schedules import SCHEDULES
from sweeper.errors import TrialError
from sweeper.records import ParamValue


@dataclass(frozen=True)
class Params:
    """One configuration. Ranges are the spec's; `epochs` is in the trial's budget already."""

    learning_rate: float
    batch_size: int
    weight_decay: float
    dropout: float
    rank: int
    alpha: float
    targets: str
    warmup: float
    schedule: str
    beta1: float
    beta2: float
    clip: float
    label_smoothing: float


def read_params(raw: Mapping[str, ParamValue]) -> Params:
    """Raises TrialError that names every key that is missing or has no usable value."""
    problems: list[str] = []
    values: dict[str, float | int | str] = {}
    for key, annotation in Params.__annotations__.items():
        value = raw.get(key)
        kind = {"float": float, "int": int, "str": str}[annotation]
        if value is None:
            problems.append(f"{key} is missing")
        elif isinstance(value, bool) or (kind is str) != isinstance(value, str) or (kind is int and value != int(value)):
            problems.append(f"{key} is {value!r}, but must be {annotation}")
        else:
            values[key] = kind(value)
    if not problems:
        problems = _out_of_range(values)
    if problems:
        raise TrialError(f"the configuration cannot be trained: {'; '.join(problems)}")
    return Params(**values)  # type: ignore[arg-type]


def _out_of_range(values: Mapping[str, float | int | str]) -> list[str]:
    checks = {
        "learning_rate": (values["learning_rate"] > 0, "above 0"),  # type: ignore[operator]
        "batch_size": (values["batch_size"] >= 1, "at least 1"),  # type: ignore[operator]
        "dropout": (0 <= values["dropout"] < 1, "in [0, 1)"),  # type: ignore[operator]
        "rank": (values["rank"] >= 1, "at least 1"),  # type: ignore[operator]
        "schedule": (values["schedule"] in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
    }
    return [f"{key} is {values[key]!r}, but must be {allowed}" for key, (fine, allowed) in checks.items() if not fine]
