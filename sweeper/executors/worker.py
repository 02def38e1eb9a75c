"""The worker of the `tune` executor: a Ray Tune trainable around one engine with one slot.

    train (Tune's call) -> step: drives the engine until it has something to say, at most about 2 s -> a message
    decide, preempt (the driver's calls, in order with train)

The engine, and with it the base model, outlives the trial: `reset_config` brings the next one to the same worker. A message stays
with the worker until the next call, so that one that was under way when the user interrupted is handed over again.
Does not know: the study, the driver's home (see `porter.py`), what other workers do. Cost: 1 to 2 ms a message.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.tune import Trainable

from sweeper.engine.base import Ended, Engine, Event
from sweeper.engine.depot import FolderDepot
from sweeper.errors import TrialError, UserError
from sweeper.executors.plan import Plan, told
from sweeper.executors.porter import RayDepot, receive
from sweeper.records import Action, Decision, Depot, Ending, Outcome, Report, ReportKind, TrialSpec

MESSAGE_SECONDS = 2.0
PARKED_SECONDS = 0.2
MESSAGE = "sweeper_message"


@dataclass(frozen=True)
class Message:
    """What one `step` has to say. `refused` is a user's mistake (its class in `errors`, its sentence) that ends the sweep."""

    number: int  # 1, 2, ... within a stay
    events: tuple[Event, ...] = ()
    refused: tuple[str, str] | None = None


class TuneWorker(Trainable):  # type: ignore[misc]  # ray has no types
    """Tune's class API. `config` holds `porter` (the actor's name), `namespace` and `trial`, a TrialSpec."""

    _engine: Engine | None
    _parked: bool
    _said: Message | None
    _broken: Exception | None

    def setup(self, config: Mapping[str, Any]) -> None:
        """Called once, by the first trial. The engine is built at the first step, where a failure can be told."""
        self._porter = ray.get_actor(config["porter"], config["namespace"])
        self._engine = None
        self._begin(config["trial"])

    def reset_config(self, new_config: Mapping[str, Any]) -> bool:
        """The next trial, in the same worker. Always True: a worker that cannot go on dies, and Tune makes a new one."""
        if self._engine is not None:
            self._engine.preempt()  # of a trial whose stop was not ours; there is none in a normal life
        self._begin(new_config["trial"])
        return True

    def step(self) -> dict[str, Any]:
        """One message. A parked trial's comes within 2 s, without training."""
        message = self._next_message()
        self._said = message
        return {MESSAGE: message}

    def decide(self, decision: Decision) -> None:
        """The driver's answer to the trial of this worker; what came of it is in the next message."""
        if self._engine is None or decision.trial not in self._engine.trials():
            return
        try:
            self._unsaid.extend(self._engine.decide(decision))
        except Exception as error:
            self._broken = error
        self._parked = self._parked and decision.action is Action.LATER

    def preempt(self, number: int) -> list[Message]:
        """Checkpoints and lets go of trial `number`. The last message again, which may not have arrived, and a new one."""
        if number != self._trial.number:
            return []
        events = [*self._unsaid, *(self._engine.preempt() if self._engine is not None else [])]
        self._unsaid.clear()
        return [*([self._said] if self._said is not None else []), self._message(events)]

    def cleanup(self) -> None:
        """Tune lets go of the worker."""
        if self._engine is not None:
            self._engine.close()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Tune's checkpoints are not ours: the engine writes its own into the depot."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """See `save_checkpoint`."""

    def _begin(self, trial: TrialSpec) -> None:
        self._trial = trial
        self._admitted = False
        self._parked = False
        self._count = 0
        self._said = None
        self._unsaid: list[Event] = []
        self._broken = None

    def _message(self, events: list[Event], refused: tuple[str, str] | None = None) -> Message:
        self._count += 1
        self._parked = self._parked or any(isinstance(e, Report) and e.kind is ReportKind.RUNG for e in events)
        return Message(self._count, tuple(events), refused)

    def _next_message(self) -> Message:
        if self._broken is not None:
            raise self._broken
        if self._unsaid:
            events = list(self._unsaid)
            self._unsaid.clear()
            return self._message(events)
        try:
            self._engine = self._engine or self._build()
            return self._message(self._work(self._engine))
        except UserError as error:
            return self._message([], refused=told(error))

    def _work(self, engine: Engine) -> list[Event]:
        if not self._admitted:
            self._admitted = True
            try:
                engine.admit(self._trial)
            except TrialError as error:
                return [Ended(self._trial.number, Outcome(Ending.FAILED, reason=str(error)))]
        if self._parked:
            time.sleep(PARKED_SECONDS)
            return engine.step()
        until = time.monotonic() + MESSAGE_SECONDS
        events: list[Event] = []
        while not events and time.monotonic() < until:
            events = engine.step()
        return events

    def _build(self) -> Engine:
        plan: Plan = ray.get(self._porter.plan.remote())
        os.environ["OMP_NUM_THREADS"] = str(plan.setup.threads)
        setup = receive(plan.setup, plan.kinds, self._porter)
        setup = replace(setup, slots=1, worker=f"{ray.util.get_node_ip_address()}:{os.getpid()}")
        depot: Depot = FolderDepot(plan.storage) if plan.storage else RayDepot(self._porter)
        return plan.factory(setup, depot)
