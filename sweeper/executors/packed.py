"""The executor that packs: one engine per device, each in a Ray actor that lives as long as the sweep, many trials in each.

Purpose: the default for LoRA. Every engine keeps its base model and trains the trials in its slots. One engine per visible GPU;
without a GPU one per core, with one thread each. What the engines are told and asked is the fleet's (`fleet.py`).
Does not know: the study, how an engine trains, which of them a trial goes to. Cost: a local cluster takes 2 to 4 s to start, an
engine 5 to 8 s of a core with its imports and its model, less what of both was begun before (`begun.py`).
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

import ray

from sweeper.engine.base import EngineSetup
from sweeper.errors import ResourceError
from sweeper.executors.base import EngineFactory, Unwatched, Watch, trial_engine
from sweeper.executors.begun import Begun
from sweeper.executors.cluster import Room, cluster
from sweeper.executors.fleet import Fleet
from sweeper.executors.interrupt import Interrupts, deferred
from sweeper.executors.plan import Plan
from sweeper.executors.porter import parcels, start_porter
from sweeper.executors.remote import LEASE_SECONDS, RemoteEngine
from sweeper.records import TrialSource
from sweeper.spec.models import ExecutorSpec


class PackedExecutor:
    """Trains in long-lived actors of a Ray cluster. Files that outlive a worker go below `depot_root`, or to `storage_path`."""

    def __init__(
        self,
        setup: EngineSetup,
        depot_root: Path,
        executor: ExecutorSpec,
        factory: EngineFactory = trial_engine,
        watch: Watch | None = None,
        lease: float = LEASE_SECONDS,
        begun: Begun | None = None,
    ) -> None:
        self._setup = setup
        self._depot_root = depot_root
        self._executor = executor
        self._factory = factory
        self._watch = watch or Unwatched()
        self._lease = lease
        self._begun = begun

    def run(self, trials: TrialSource) -> None:
        """Trains until the source is Done. On Ctrl-C engines checkpoint, every trial ends PREEMPTED, KeyboardInterrupt is raised.

        Raises ResourceError if the cluster does not answer, has no room for an engine, or engines die at their start, and any
        UserError that a worker met.
        """
        with self._begun or cluster(self._executor) as room, deferred() as interrupts:
            self._run(trials, room, interrupts)

    def _run(self, trials: TrialSource, room: Room, interrupts: Interrupts) -> None:
        self._say_room(room)
        setup = replace(self._setup, device="cuda" if room.gpus > 0 else "cpu", threads=max(1, int(room.cpus)))
        carried = parcels(setup)
        name = f"porter-{uuid.uuid4().hex[:12]}"
        plan = Plan(setup, self._factory, tuple(carried), self._executor.storage_path)
        porter = start_porter(carried, plan, self._depot_root, name)
        address = (name, ray.get_runtime_context().namespace)
        engines = [RemoteEngine(index, address, room, self._lease) for index in range(room.workers)]
        asked = self._begun.take() if self._begun is not None else []
        try:
            Fleet(engines, setup, trials, interrupts, self._watch, asked).run()
        except (ray.exceptions.RaySystemError, ray.exceptions.RpcError, ConnectionError) as error:
            first = str(error).split("\n")[0]
            raise ResourceError(f"the Ray cluster is gone ({first}); run the same command again to go on") from error
        finally:
            for engine in engines:
                engine.kill()
            ray.kill(porter)

    def _say_room(self, room: Room) -> None:
        asked = self._executor.workers
        if asked is not None and room.workers < asked:
            if self._setup.deterministic:
                raise ResourceError(
                    f"search.deterministic needs the {asked} engines that this study began with, but there is room for "
                    f"{room.workers}; add CPUs or GPUs, or set search.deterministic: false"
                )
            self._watch.notice(f"executor.workers is {asked}, but the cluster has room for {room.workers}: so many engines train")
