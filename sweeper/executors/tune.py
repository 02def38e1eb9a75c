"""The executor over Ray Tune: one trial per worker, as many workers as the resources allow.

Purpose: what cannot share a base model runs here, and any sweep on a Ray cluster. Tune owns its own loop; `bridge.py` hands each of
its questions to the TrialSource, so that the study stays the one truth. `worker.py` is the other side, `porter.py` between them.
Does not know: the study, how a trial trains. Cost: a local cluster takes 3 to 8 s to start, a worker 2 to 4 s with its imports
and its model; from then on 1 to 2 ms a message and 10 ms from one trial to the next.
"""

from __future__ import annotations

import logging
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import ray
from ray import tune

from sweeper.engine.base import EngineSetup
from sweeper.errors import ResourceError
from sweeper.executors.base import EngineFactory, trial_engine
from sweeper.executors.bridge import Bridge, BridgeCallback, BridgeScheduler, BridgeSearcher, BridgeStopper
from sweeper.executors.cluster import Room, cluster
from sweeper.executors.interrupt import Interrupts, deferred
from sweeper.executors.plan import Plan
from sweeper.executors.porter import parcels, start_porter
from sweeper.executors.worker import TuneWorker
from sweeper.records import TrialSource
from sweeper.spec.models import ExecutorSpec

_TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's own would end the run without a word to the workers
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # the study is what a sweep goes on from
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "10",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


class TuneExecutor:
    """Trains in the workers of a Ray cluster. Files that outlive a worker go below `depot_root`, or to `executor.storage_path`."""

    def __init__(self, setup: EngineSetup, depot_root: Path, executor: ExecutorSpec, factory: EngineFactory = trial_engine) -> None:
        self._setup = setup
        self._depot_root = depot_root
        self._executor = executor
        self._factory = factory

    def run(self, trials: TrialSource) -> None:
        """Trains until the source is Done. On Ctrl-C workers checkpoint, every trial ends PREEMPTED, KeyboardInterrupt is raised.

        Raises ResourceError if the cluster does not answer or has no room for a trial, and any UserError that a worker met.
        """
        with cluster(self._executor) as room, deferred() as interrupts, _quiet():
            self._run(trials, room, interrupts)

    def _run(self, trials: TrialSource, room: Room, interrupts: Interrupts) -> None:
        device = "cuda" if room.gpus > 0 else "cpu"
        setup = replace(self._setup, device=device, threads=max(1, int(room.cpus)))
        carried = parcels(setup)
        plan = Plan(setup, self._factory, tuple(carried), self._executor.storage_path)
        name = f"porter-{uuid.uuid4().hex[:12]}"
        porter = start_porter(carried, plan, self._depot_root, name)
        config = {"porter": name, "namespace": ray.get_runtime_context().namespace}
        bridge = Bridge(trials, interrupts, config)
        try:
            self._tune(bridge, room)
        except BaseException as error:
            # A second Ctrl-C, or Ray itself is gone: nobody is left to ask.
            bridge.preempt(ask_workers=False)
            if _is_loss(error):
                raise ResourceError(
                    f"the Ray cluster is gone ({str(error).splitlines()[0]}); run the same command again to go on"
                ) from error
            raise
        finally:
            ray.kill(porter)
        if bridge.error is not None:
            raise bridge.error

    def _tune(self, bridge: Bridge, room: Room) -> None:
        with tempfile.TemporaryDirectory(prefix="sweeper-tune-") as folder:
            tune.run(
                TuneWorker,
                name=self._setup.study,
                config={},
                resources_per_trial={"cpu": room.cpus, "gpu": room.gpus},
                num_samples=-1,
                search_alg=BridgeSearcher(bridge),
                scheduler=BridgeScheduler(bridge),
                callbacks=[BridgeCallback(bridge)],
                stop=BridgeStopper(bridge),
                max_concurrent_trials=room.workers,
                max_failures=0,
                reuse_actors=True,
                raise_on_failed_trial=False,
                storage_path=folder,
                trial_dirname_creator=lambda trial: trial.trial_id,
                verbose=0,
            )


def _is_loss(error: BaseException) -> bool:
    """Whether Ray itself is gone, and not only a worker."""
    return isinstance(error, ray.exceptions.RaySystemError | ray.exceptions.RpcError | ConnectionError)


@contextmanager
def _quiet() -> Iterator[None]:
    """Tune's settings come from the environment, its complaints go to the root logger; both are ours while it runs."""
    before: Mapping[str, str | None] = {key: os.environ.get(key) for key in _TUNE_ENVIRONMENT}
    logger = logging.getLogger("ray.tune")
    level = logger.level
    os.environ.update(_TUNE_ENVIRONMENT)
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        for key, value in before.items():
            _restore(key, value)


def _restore(key: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(key, None)
    else:
        os.environ[key] = value
