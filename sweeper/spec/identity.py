"""What makes two runs the same study, and a spec as it is stored and shown.

Identity = hash of model, data, training, space, objective, seed and the evaluation clock (with its rungs). Trials, time,
sampler, pruner, executor, tracking and storage may change between runs of a study.
Does not know how models and data are fingerprinted, nor where a study is stored. Cost: well under a millisecond.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sweeper.spec.checks import resolve
from sweeper.spec.mask import mask
from sweeper.spec.metrics import METRICS
from sweeper.spec.models import SweepSpec, TrainingSpec
from sweeper.spec.yaml_text import write_yaml

__all__ = ["Identity", "canonical", "differences", "document", "identity", "mask", "to_yaml"]


@dataclass(frozen=True)
class Identity:
    """`hash` (32 hex digits) of `parts`: plain JSON values, stored with the study so that a difference can be named."""

    hash: str
    parts: Mapping[str, Any]


def identity(
    spec: SweepSpec, data_fingerprint: str, model_fingerprint: str, resolved_training: TrainingSpec | None = None
) -> Identity:
    """The identity of the study that `spec` asks for.

    `data_fingerprint` stands for rows, split, template, tokenizer and length, `model_fingerprint` for the base model's files; so
    that moving either to another folder is no other study. Without `resolved_training` the spec's own training section counts,
    `auto` being one of its values.
    """
    spec = resolve(spec)
    training = resolved_training or spec.training
    decoded = any(METRICS[metric].decode for metric in spec.objective.metrics if metric in METRICS)
    objective = spec.objective.model_dump(mode="json")
    parts: dict[str, Any] = {
        "model": model_fingerprint,
        "data": {"fingerprint": data_fingerprint, "limit": spec.data.limit.model_dump(mode="json")},
        "training": _training(training),
        "space": {key: spec.space[key].model_dump(mode="json") for key in sorted(spec.space)},
        "objective": {**objective, "max_new_tokens": spec.evaluate.max_new_tokens} if decoded else objective,
        # They decide how many validation rows a value is read on: values of different rows must not be ranked together.
        "evaluate": {
            **spec.evaluate.model_dump(mode="json", include={"every", "share", "rows"}),
            "rungs": [float(rung) for rung in spec.search.rungs],
        },
        "seed": spec.search.seed,
    }
    return Identity(hashlib.blake2b(canonical(parts).encode(), digest_size=16).hexdigest(), parts)


def differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What differs between two identities' parts, one sentence each: `training.rank was 8 and is 4`."""
    before, now = _flat(stored), _flat(asked)
    return [
        f"{path} was {_shown(before, path)} and is {_shown(now, path)}"
        for path in dict.fromkeys([*before, *now])
        if before.get(path, _ABSENT) != now.get(path, _ABSENT)
    ]


def document(spec: SweepSpec) -> dict[str, Any]:
    """The whole spec as plain JSON values under the keys of the YAML, secrets masked: what is stored and shown."""
    plain: dict[str, Any] = mask(spec.model_dump(mode="json", by_alias=True))
    return plain


def to_yaml(spec: SweepSpec) -> str:
    """The whole spec as YAML, secrets masked; `load_spec` reads it back to an equal spec where there were none."""
    return write_yaml(document(spec))


def canonical(value: Any) -> str:
    """JSON of which equal values have equal text: keys sorted, no blanks."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _training(training: TrainingSpec) -> dict[str, Any]:
    """The section with its learning rate as a number. A key newer than the first studies counts only where it is set."""
    plain = {**training.model_dump(mode="json"), "learning_rate": training.default_learning_rate()}
    return {key: value for key, value in plain.items() if (key, value) not in _NEWER}


_NEWER = (("layers", "all"),)
_ABSENT = object()


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {
            inner: leaf for key, item in value.items() for inner, leaf in _flat(item, f"{path}.{key}" if path else str(key)).items()
        }
    return {path: value}


def _shown(flat: Mapping[str, Any], path: str) -> str:
    return "absent" if path not in flat else canonical(flat[path])
