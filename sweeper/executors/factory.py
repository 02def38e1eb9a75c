"""Chooses the executor of a spec, and builds it.

    method: lora, architecture known    auto, packed -> packed     tune -> tune     local -> local, many slots
    full fine-tuning, others            auto, packed -> tune       tune -> tune     local -> local, one slot

Does not know how any of them trains. Ray is imported only where it is asked for. Costs reading the model's config; an executor does
its work in `run`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sweeper.engine.base import EngineSetup
from sweeper.engine.depot import FolderDepot
from sweeper.engine.targets import FAMILIES
from sweeper.errors import ModelError
from sweeper.executors.base import EngineFactory, Unwatched, Watch, trial_engine
from sweeper.executors.local import LocalExecutor
from sweeper.records import Executor
from sweeper.spec.models import SweepSpec

if TYPE_CHECKING:
    from sweeper.executors.begun import Begun

DETERMINISTIC_SLOTS = 4
"""Trials at once in one engine where nothing may be measured and `executor.slots` is not given."""


@dataclass(frozen=True)
class Choice:
    """Which executor trains, whether its engines hold several trials, and a sentence where that is not what was asked or usual."""

    kind: str  # local, packed or tune
    packs: bool
    why: str = ""


def choose(spec: SweepSpec, model: Path | str) -> Choice:
    """The executor for `spec` with the base model in folder `model`. Raises ModelError where it cannot keep a fixed order."""
    executor = spec.executor
    why = _why_not_packed(spec, model)
    if executor.kind == "local":
        return Choice("local", not why, why)
    if executor.kind == "tune":
        return Choice("tune", False)
    if not why and (executor.gpus or 0) > 1:
        why = f"executor.gpus is {executor.gpus:g}, and an engine of many trials lives on one GPU"
    if not why:
        return Choice("packed", True)
    if spec.search.deterministic:
        raise ModelError(
            f"search.deterministic is true, but one trial per worker, in the order they happen to report, is what remains: {why}; "
            "use executor.kind: local, or leave deterministic out"
        )
    return Choice("tune", False, f"executor.kind {executor.kind} is tune here: {why}")


def begin(spec: SweepSpec) -> Begun | None:
    """Begins the local cluster and its engines for a sweep whose model and rows are not ready yet, where it will surely want them.

    None where that is not known, where the cluster is another's, and where the order, and with it the engines, is the study's.
    """
    executor = spec.executor
    packs = executor.kind in ("auto", "packed") and spec.training.method == "lora" and (executor.gpus or 0) <= 1
    if not packs or executor.address is not None or spec.search.deterministic or not _known_family(Path(spec.model.name)):
        return None
    from sweeper.executors.begun import begin_cluster

    return begin_cluster(executor)


def _known_family(model: Path) -> bool:
    """Whether the packed engine knows the model by its name, as far as that can be read here; a file or hub id may be anything."""
    try:
        return json.loads((model.expanduser() / "config.json").read_text()).get("model_type") in FAMILIES
    except (OSError, ValueError, AttributeError):
        return not model.expanduser().is_dir()


def _why_not_packed(spec: SweepSpec, model: Path | str) -> str:
    """Why trials cannot share the base model; empty where they can."""
    if spec.training.method == "full":
        return "full fine-tuning changes every weight, so trials share no base model and each has a worker of its own"
    from sweeper.engine.probe import packed_note

    return packed_note(Path(model), spec.model.trust_remote_code) or ""


def build_executor(
    spec: SweepSpec,
    setup: EngineSetup,
    depot_root: Path,
    factory: EngineFactory = trial_engine,
    watch: Watch | None = None,
    choice: Choice | None = None,
    begun: Begun | None = None,
) -> Executor:
    """The executor of `spec.executor`. Files that outlive a worker go below `depot_root`, or to `executor.storage_path`.

    `begun` is the cluster where it was begun ahead, for this very `spec.executor`.
    Fills in what of `setup` is the executor's: threads, slots, memory, and with Ray the device and the worker's name.
    """
    told = watch or Unwatched()
    chosen = choice or choose(spec, setup.model)
    if chosen.why:
        told.notice(chosen.why)
    setup = engine_setup(spec, setup, chosen)
    if chosen.kind == "local":
        return LocalExecutor(setup, FolderDepot(depot_root), factory, told)
    if chosen.kind == "packed":
        from sweeper.executors.packed import PackedExecutor

        return PackedExecutor(setup, depot_root, spec.executor, factory, told, begun=begun)
    if begun is not None:
        begun.forgo()
    from sweeper.executors.tune import TuneExecutor

    return TuneExecutor(setup, depot_root, spec.executor, factory)


def engine_setup(spec: SweepSpec, setup: EngineSetup, choice: Choice) -> EngineSetup:
    """`setup` with threads, slots and memory. Slots are measured unless given, or unless the order is fixed."""
    executor, fixed = spec.executor, spec.search.deterministic
    slots = (executor.slots or (DETERMINISTIC_SLOTS if fixed else 0)) if choice.packs else 1
    return replace(
        setup,
        threads=max(1, int(executor.cpus)),
        slots=slots,
        micro_tokens=setup.training.chunk_tokens if fixed else setup.micro_tokens,
        memory=int(executor.memory) if executor.memory is not None else None,
        deterministic=fixed,
    )
