"""`export`: a trial's adapter in PEFT's own format, or the base model with the adapter folded in.

Cost: a copy; merged, one load of the base model.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from sweeper.errors import ResourceError
from sweeper.sweep.query import Place, adapter_of, trial_or_best
from sweeper.sweep.use import method_of, model_of


@dataclass(frozen=True)
class Exported:
    """What was written, and how to load it."""

    trial: int
    folder: Path
    how: str


def export(place: Place, number: int | None, folder: Path, *, merged: bool = False) -> Exported:
    """Writes trial `number` (None: the winner) to `folder`. Raises StudyError or ResourceError; leaves no half-written folder."""
    trial = trial_or_best(place, number)
    adapter = adapter_of(place, trial)
    target = folder.expanduser().absolute()
    if target.exists():
        raise ResourceError(f"{target} exists already; choose a folder that does not, so that nothing is overwritten")
    full = method_of(place) == "full"
    aside = target.with_name(f".{target.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if merged and not full:
            from sweeper.engine.export import merge_adapter

            merge_adapter(model_of(place), adapter, aside)
        else:
            shutil.copytree(adapter, aside)
        aside.rename(target)
    except OSError as error:
        raise ResourceError(
            f"{target} could not be written ({error.strerror}); free some space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    loader = "AutoModelForCausalLM.from_pretrained" if merged or full else "PeftModel.from_pretrained"
    return Exported(trial.number, target, f"load it with {loader}")
