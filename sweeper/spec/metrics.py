"""The metrics a spec may name: for which tasks, and which direction is better. In reports they stand as `validation/NAME`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["minimize", "maximize"]
TASKS = ("classify", "instruct", "text", "chat")


@dataclass(frozen=True)
class MetricInfo:
    """A metric's direction, the tasks that can have it, and how rows are read for it."""

    direction: Direction
    tasks: tuple[str, ...]
    decode: bool = False  # needs decoded text


METRICS: dict[str, MetricInfo] = {
    "loss": MetricInfo("minimize", TASKS),
    "perplexity": MetricInfo("minimize", TASKS),
    "accuracy": MetricInfo("maximize", ("classify",)),
    "macro_f1": MetricInfo("maximize", ("classify",)),
    "exact_match": MetricInfo("maximize", ("instruct",), decode=True),
    "rouge_l": MetricInfo("maximize", ("instruct",), decode=True),
    "chrf": MetricInfo("maximize", ("instruct",), decode=True),
}


def is_function(metric: str) -> bool:
    """Whether `metric` names a user's function, `package.module:function`."""
    return ":" in metric


def default_metric(task: str) -> str:
    """What `objective.metric: auto` means."""
    return "accuracy" if task == "classify" else "loss"
