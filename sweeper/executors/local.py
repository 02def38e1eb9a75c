"""The executor of laptops, tests and debugging: one engine in this process.

Does not know: Ray, or how the engine trains. Costs nothing over the engine.
"""

from __future__ import annotations

from sweeper.engine.base import EngineSetup
from sweeper.executors.base import EngineFactory, Unwatched, Watch, drive, trial_engine
from sweeper.records import Depot, TrialSource


class LocalExecutor:
    """Trains in this process, as many trials at once as the engine has slots."""

    def __init__(self, setup: EngineSetup, depot: Depot, factory: EngineFactory = trial_engine, watch: Watch | None = None) -> None:
        self._setup = setup
        self._depot = depot
        self._factory = factory
        self._watch = watch or Unwatched()

    def run(self, trials: TrialSource) -> None:
        """Builds the engine, trains until the source is Done, and lets go of the engine. See `base.drive`."""
        engine = self._factory(self._setup, self._depot)
        try:
            drive(engine, trials, engine.capacity(), self._watch)
        finally:
            engine.close()
