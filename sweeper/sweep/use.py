"""What a stored study says about the model it trained: base model folder, method and spec, for verbs that come later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sweeper.errors import StudyError
from sweeper.spec.models import SweepSpec, TrainingSpec
from sweeper.sweep.query import Place


def spec_of(place: Place) -> SweepSpec:
    """The spec that the study was started with; secrets in it are masked."""
    raw = {key: value for key, value in place.reader().plan(place.study).spec.items() if key not in ("resolved", "facts")}
    return SweepSpec.model_validate(raw)


def model_of(place: Place) -> Path:
    """Folder of the base model as the sweep used it, made ready again from the spec's name if it has gone."""
    folder = Path(str(_facts(place).get("model", "")))
    if (folder / "config.json").is_file():
        return folder
    from sweeper.engine.model import prepare_model

    return prepare_model(spec_of(place).model, place.home.models)


def method_of(place: Place) -> str:
    """lora or full."""
    return spec_of(place).training.method


def resolved_training(place: Place) -> TrainingSpec:
    """The training section with its numbers settled at the start of the study."""
    return TrainingSpec.model_validate(place.reader().plan(place.study).spec["resolved"])


def label_words(place: Place) -> tuple[str, ...]:
    """classify: the words the model answers, in class order."""
    words = _facts(place).get("labels")
    if not words:
        raise StudyError(f"study {place.study!r} has no labels in its database; run it again with this version")
    return tuple(str(word) for word in words)


def _facts(place: Place) -> dict[str, Any]:
    facts = place.reader().plan(place.study).spec.get("facts")
    return facts if isinstance(facts, dict) else {}
