"""Builds the executor that a spec asks for.

Does not know how either trains. Ray is imported only where it is asked for. Costs nothing: an executor does its work in `run`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sweeper.engine.base import EngineSetup
from sweeper.engine.depot import FolderDepot
from sweeper.executors.base import EngineFactory, trial_engine
from sweeper.executors.local import LocalExecutor
from sweeper.records import Executor
from sweeper.spec.models import SweepSpec


def build_executor(spec: SweepSpec, setup: EngineSetup, depot_root: Path, factory: EngineFactory = trial_engine) -> Executor:
    """The executor of `spec.executor`. Files that outlive a worker go below `depot_root`, or to `executor.storage_path`.

    Fills in what of `setup` is the executor's: threads, and with Ray the device and the worker's name.
    """
    setup = replace(setup, threads=max(1, int(spec.executor.cpus)))
    if spec.executor.kind == "local":
        return LocalExecutor(setup, FolderDepot(depot_root), factory)
    from sweeper.executors.tune import TuneExecutor

    return TuneExecutor(setup, depot_root, spec.executor, factory)
