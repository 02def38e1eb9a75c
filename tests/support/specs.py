"""A small whole spec for the tiny model: a sweep of seconds, with trials that are pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def tiny_spec(model_folder: Path, rows: Path, /, **sections: Any) -> dict[str, Any]:
    """The spec as a mapping; sections given are merged over it, a section of None is left out."""
    spec: dict[str, Any] = {
        "schema": 1,
        "name": "tiny",
        "model": str(model_folder),
        "data": {
            "path": str(rows),
            "task": "classify",
            "columns": {"text": "text", "label": "label"},
            "template": "{text}\nsentiment:",
            "limit": {"train": 96, "validation": 32},
        },
        "training": {"rank": 4, "batch_size": 8, "learning_rate": 0.002},
        "space": {
            "learning_rate": {"low": 1e-4, "high": 2e-2, "log": True},
            "batch_size": [4, 8, 16],
            "weight_decay": {"low": 0.0, "high": 0.1},
            "dropout": {"low": 0.0, "high": 0.2},
        },
        "search": {"trials": 6, "startup_trials": 3, "rungs": [0.3], "seed": 3, "collapse": {"enabled": False}},
        "evaluate": {"share": 1.0},
        "executor": {"kind": "local", "slots": 1},  # measures nothing, and one trial after another
    }
    for key, value in sections.items():
        if value is None:
            spec.pop(key, None)
        elif isinstance(value, dict) and isinstance(spec.get(key), dict):
            spec[key] = {**spec[key], **value}
        else:
            spec[key] = value
    return spec
