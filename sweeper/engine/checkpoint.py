"""Checkpoints: everything that a trial needs to go on as if it had never stopped.

    state.safetensors   weights and both moments [P] fp32; `best` too, where the best evaluation's weights are kept
    state.json          progress (steps, examples, sums, what is due), the configuration it belongs to, SHA-256 of the other file

No random state: every draw is seeded by its place (`seeds.py`). Written whole or not at all, by the depot; never unpickled.
Does not know nets or slots. Cost: 12 bytes a trainable number, 16 with `best`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from sweeper.errors import TrialError
from sweeper.records import Depot, ParamValue, TrialSpec

FORMAT = 2  # 1 kept LoRA's B as [out, r]
_STATE, _WEIGHTS = "state.json", "state.safetensors"


@dataclass
class Progress:
    """Where a trial stands; plain numbers, kept in state.json.

    `due` are nominal numbers whose evaluation is not reported yet, `done` how many of the trial's evaluations are due or
    reported. The two interval fields average the training loss since the last evaluation. Seconds and tokens are those of
    the present stay in a slot, so that the stays of a trial add up. `chunk_tokens` is there where memory did not suffice for the
    study's chunks.
    """

    steps: int = 0
    examples: int = 0
    tokens: int = 0
    done: int = 0
    due: list[int] = field(default_factory=list)
    first_loss: float | None = None
    interval_loss: float = 0.0
    interval_steps: int = 0
    learning_rate: float = 0.0
    gradient_norm: float = 0.0
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    chunk_tokens: int | None = None
    last: Measured | None = None
    best: Measured | None = None


@dataclass(frozen=True)
class Measured:
    """One evaluation: its metrics, where, and where its outcomes lie."""

    metrics: Mapping[str, float]
    nominal: int
    examples: int
    outcomes: str | None


@dataclass(frozen=True)
class Checkpoint:
    """What `load_checkpoint` gives back. `tensors` has weights, first, second and, if it was kept, best."""

    progress: Progress
    tensors: dict[str, Tensor]


def checkpoint_name(trial: TrialSpec, examples: int) -> str:
    """Name in the depot."""
    return f"checkpoints/{trial.study}/{trial.number}/{examples}"


def save_checkpoint(depot: Depot, trial: TrialSpec, progress: Progress, tensors: Mapping[str, Tensor]) -> str:
    """Stores a checkpoint; returns its name."""
    weights = save({name: tensor.detach().cpu() for name, tensor in tensors.items()})
    state = {
        "format": FORMAT,
        "study": trial.study,
        "trial": trial.number,
        "seed": trial.seed,
        "params": dict(trial.params),
        "progress": asdict(progress),
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    name = checkpoint_name(trial, progress.examples)
    return depot.put(name, {_STATE: json.dumps(state, indent=1).encode(), _WEIGHTS: weights})


def load_checkpoint(depot: Depot, trial: TrialSpec, name: str) -> Checkpoint:
    """The checkpoint `name`. Raises TrialError if it is not there, damaged, or belongs to another configuration."""
    try:
        files = depot.get(name)
        state: dict[str, Any] = json.loads(files[_STATE])
        weights = files[_WEIGHTS]
    except (FileNotFoundError, KeyError, ValueError) as error:
        raise TrialError(f"checkpoint {name} is not there or cannot be read ({error}); start the trial anew") from error
    if hashlib.sha256(weights).hexdigest() != state.get("sha256"):
        raise TrialError(f"checkpoint {name} is damaged: its checksum does not fit; start the trial anew or from an earlier one")
    mine: dict[str, ParamValue] = dict(trial.params)
    if state.get("format") != FORMAT or state["seed"] != trial.seed or state["params"] != mine:
        raise TrialError(f"checkpoint {name} belongs to another configuration, seed or version; start the trial anew")
    raw = state["progress"]
    measured = {key: Measured(**raw[key]) if raw[key] is not None else None for key in ("last", "best")}
    costs = {"tokens": 0, "train_seconds": 0.0, "evaluate_seconds": 0.0}
    return Checkpoint(Progress(**{**raw, **measured, **costs}), load(weights))
