"""Engine factories and curves that misbehave, in a module that a worker can import."""

from __future__ import annotations

import importlib
import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sweeper.engine.base import Capacity, Ended, Engine, EngineSetup
from sweeper.errors import ModelError, ResourceError
from sweeper.executors.replay import Replay
from sweeper.records import Action, Decision, Depot, TrialSpec
from tests.contracts.executor import Curves


@dataclass(frozen=True)
class Faulty:
    """A curve whose trial 0 raises what no trial may raise."""

    def __call__(self, spec: TrialSpec, index: int) -> float:
        if spec.number == 0 and index == 1:
            raise ZeroDivisionError("a bug in the engine\nwith a long story")
        return 1.0


@dataclass(frozen=True)
class Deadly:
    """A curve whose trial `number` ends its process, as the kernel's out-of-memory killer would."""

    number: int

    def __call__(self, spec: TrialSpec, index: int) -> float:
        if spec.number == self.number and index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return 1.0


@dataclass(frozen=True)
class Dying:
    """An engine whose process ends while it is built."""

    def __call__(self, given: EngineSetup, depot: Depot) -> Engine:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@dataclass(frozen=True)
class Unsteady:
    """An engine on a processor that does not keep rows apart."""

    def __call__(self, given: EngineSetup, depot: Depot) -> Engine:
        engine = Replay(Curves())(given, depot)
        setattr(engine, "capacity", lambda: Capacity(2, 1, steady=False))  # noqa: B010
        return engine


@dataclass(frozen=True)
class SlowToPause:
    """An engine that takes `seconds` to pause a trial; or, with `dies`, ends its process in there, once."""

    curves: Curves
    evaluation: float
    seconds: float = 0.0
    dies: str | None = None  # a file that says that it died

    def __call__(self, given: EngineSetup, depot: Depot) -> Engine:
        engine = Replay(self.curves, self.evaluation)(given, depot)
        decide = engine.decide

        def slowly(decision: Decision) -> list[Ended]:
            if decision.action is Action.PAUSE:
                if self.dies is not None and not Path(self.dies).exists():
                    Path(self.dies).touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(self.seconds)
            return decide(decision)

        setattr(engine, "decide", slowly)  # noqa: B010
        return engine


@dataclass(frozen=True)
class FullDisk:
    """An engine whose depot takes nothing more."""

    def __call__(self, given: EngineSetup, depot: Depot) -> Engine:
        class Full:
            def put(self, name: str, files: Mapping[str, bytes]) -> str:
                raise ResourceError("the disk of the home is full; make room and run the same command again")

            def get(self, name: str) -> dict[str, bytes]:
                raise FileNotFoundError(name)

            def remove(self, name: str) -> None: ...

        return Replay(Curves())(given, Full())


@dataclass(frozen=True)
class Refusing:
    """An engine that cannot be built."""

    def __call__(self, given: EngineSetup, depot: Depot) -> Engine:
        raise ModelError("model folder x has no config.json; give the folder that save_pretrained wrote")


@dataclass(frozen=True)
class Spying:
    """Notes what a worker was given, and uses a metric of the user's."""

    log: str

    def __call__(self, given: EngineSetup, depot: Depot) -> Engine:
        module = importlib.import_module("users_metrics.scores")
        seen = {
            "model": (given.model, sorted(p.name for p in Path(given.model).iterdir())),
            "train": (str(given.train), (given.train / "info.json").read_text()),
            "validation": str(given.validation),
            "metric": module.half([4.0]),
            "device": given.device,
            "threads": given.threads,
            "omp": os.environ["OMP_NUM_THREADS"],
        }
        Path(self.log).write_text(json.dumps(seen))
        return Replay(Curves())(given, depot)
