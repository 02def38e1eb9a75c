"""Sweeper: hyperparameter sweeps for fine-tuning LLMs. The public names, nothing else; each is imported when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeper.errors import SweeperError, UserError
    from sweeper.records import Comparison, TrialState, Verdict
    from sweeper.spec.load import load_spec
    from sweeper.spec.models import SweepSpec
    from sweeper.sweep.export import export
    from sweeper.sweep.plan import plan
    from sweeper.sweep.predict import predict_file, predict_text
    from sweeper.sweep.query import best, find, show, status
    from sweeper.sweep.result import SweepResult
    from sweeper.sweep.run import Interrupted, run
    from sweeper.sweep.validate import validate

_HOME = {
    "Comparison": "sweeper.records",
    "Interrupted": "sweeper.sweep.run",
    "SweepResult": "sweeper.sweep.result",
    "SweepSpec": "sweeper.spec.models",
    "SweeperError": "sweeper.errors",
    "TrialState": "sweeper.records",
    "UserError": "sweeper.errors",
    "Verdict": "sweeper.records",
    "best": "sweeper.sweep.query",
    "export": "sweeper.sweep.export",
    "find": "sweeper.sweep.query",
    "load_spec": "sweeper.spec.load",
    "plan": "sweeper.sweep.plan",
    "predict_file": "sweeper.sweep.predict",
    "predict_text": "sweeper.sweep.predict",
    "run": "sweeper.sweep.run",
    "show": "sweeper.sweep.query",
    "status": "sweeper.sweep.query",
    "validate": "sweeper.sweep.validate",
}

__all__ = [
    "Comparison",
    "Interrupted",
    "SweepResult",
    "SweepSpec",
    "SweeperError",
    "TrialState",
    "UserError",
    "Verdict",
    "best",
    "export",
    "find",
    "load_spec",
    "plan",
    "predict_file",
    "predict_text",
    "run",
    "show",
    "status",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sweeper' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
