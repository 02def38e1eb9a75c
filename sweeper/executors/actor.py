"""The worker of the `packed` executor: a Ray actor around one engine with many slots, which lives as long as the sweep.

    hello                    who and where it is, before anything is loaded
    warm                     imports what an engine needs; asked where nobody knows yet what it will train
    open                     builds the engine: what it found out about its room
    work (orders)            decisions, then new trials, then steps until there is something to say, at most about a second
    preempt                  checkpoints every trial and lets go of it

The base model is read once; trials come and go without another load. A message is the answer to one call, so that none is lost
while the actor lives. Does not know: the study, the driver's home (see `porter.py`), what other engines do. Cost: 1 to 2 ms a call.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray

from sweeper.engine.base import Capacity, Ended, Engine, EngineSetup, Event
from sweeper.engine.depot import FolderDepot
from sweeper.errors import TrialError, UserError
from sweeper.executors.cache import derived
from sweeper.executors.plan import Plan, told
from sweeper.executors.porter import RayDepot, receive
from sweeper.records import Action, Decision, Depot, Ending, Outcome, ReportKind, TrialSpec

MESSAGE_SECONDS = 1.0
PLANNED = 0.9
"""Share of an engine's part of the memory that it plans with; the rest is for evaluations and for other programs."""


@dataclass(frozen=True)
class Limits:
    """What is one engine's own: its part of the node's memory; after a death slots and tokens of a pass, half of what it had."""

    share: float = 1.0
    slots: int | None = None
    micro_tokens: int | None = None
    chunk_tokens: int | None = None


@dataclass(frozen=True)
class Orders:
    """What an engine is to do: answers first, since they free slots, then trials. `steps`: exactly so many, whatever comes of
    them; None: until something is to be said."""

    decisions: tuple[Decision, ...] = ()
    trials: tuple[TrialSpec, ...] = ()
    steps: int | None = None


@dataclass(frozen=True)
class Message:
    """What an engine says. `refused` is a user's mistake (its class in `errors`, its sentence) that ends the sweep."""

    events: tuple[Event, ...] = ()
    seconds: float = 0.0  # that the call took in the actor
    capacity: Capacity | None = None  # after `open`
    refused: tuple[str, str] | None = None


class EngineActor:
    """The actor. One thread, calls in the order they were sent."""

    def __init__(self) -> None:
        self._porter: Any = None
        self._engine: Engine | None = None
        self._parked: set[int] = set()
        self._events: list[Event] = []

    def hello(self) -> tuple[int, str]:
        """This worker's process, and its node."""
        return os.getpid(), str(ray.get_runtime_context().get_node_id())

    def warm(self, threads: int) -> None:
        """Imports what an engine of `threads` threads needs: most of the time that `open` would take."""
        os.environ["OMP_NUM_THREADS"] = str(threads)
        import sweeper.engine.engine
        import sweeper.engine.lora_net  # noqa: F401

    def open(self, porter: tuple[str, str], limits: Limits) -> Message:
        """Fetches what this node lacks from `porter` (name, namespace) and builds the engine."""
        return self._message(lambda: self._build(porter, limits))

    def work(self, orders: Orders) -> Message:
        """Carries out `orders`."""
        return self._message(lambda: self._work(orders))

    def preempt(self) -> Message:
        """Every trial checkpointed and gone."""
        return self._message(self._preempt)

    def _message(self, call: Callable[[], object]) -> Message:
        """What `call` came to. An error leaves with what was said before it; one that is no user's is Ray's to carry."""
        began = time.monotonic()
        refused: tuple[str, str] | None = None
        capacity: object = None
        try:
            capacity = call()
        except UserError as error:
            refused = told(error)
        events, self._events = tuple(self._events), []
        found = capacity if isinstance(capacity, Capacity) else None
        return Message(events, time.monotonic() - began, found, refused)

    def _work(self, orders: Orders) -> None:
        engine = self._engine
        assert engine is not None
        late = {trial.number for trial in orders.trials}
        self._decide(engine, [decision for decision in orders.decisions if decision.trial not in late])
        for trial in orders.trials:
            try:
                engine.admit(trial)
            except TrialError as error:
                self._say([Ended(trial.number, Outcome(Ending.FAILED, reason=str(error)))])
        self._decide(engine, [decision for decision in orders.decisions if decision.trial in late])
        if orders.steps is not None:
            for _ in range(orders.steps):
                self._step(engine)
            return
        until = time.monotonic() + MESSAGE_SECONDS
        while not self._events and time.monotonic() < until and self._step(engine):
            pass

    def _decide(self, engine: Engine, decisions: list[Decision]) -> None:
        for decision in decisions:
            self._say(engine.decide(decision))
            if decision.action is not Action.LATER:
                self._parked.discard(decision.trial)

    def _step(self, engine: Engine) -> bool:
        """One step; False where there was nothing to do."""
        if set(engine.trials()) <= self._parked:
            return False
        self._say(engine.step())
        return True

    def _say(self, events: list[Event] | list[Ended]) -> None:
        for event in events:
            self._events.append(event)
            if isinstance(event, Ended):
                self._parked.discard(event.trial)
            elif event.kind is ReportKind.RUNG:
                self._parked.add(event.trial)

    def _preempt(self) -> None:
        if self._engine is not None:
            self._say(self._engine.preempt())

    def _build(self, porter: tuple[str, str], limits: Limits) -> Capacity:
        self._porter = ray.get_actor(*porter)
        plan: Plan = ray.get(self._porter.plan.remote())
        os.environ["OMP_NUM_THREADS"] = str(plan.setup.threads)
        setup = shared_pages(limited(receive(plan.setup, plan.kinds, self._porter), limits), limits.share)
        setup = replace(setup, worker=f"{ray.util.get_node_ip_address()}:{os.getpid()}")
        depot: Depot = FolderDepot(plan.storage) if plan.storage else RayDepot(self._porter)
        self._engine = plan.factory(setup, depot)
        return self._engine.capacity()


def limited(setup: EngineSetup, limits: Limits) -> EngineSetup:
    """`setup` with what is this engine's own: slots and tokens of a pass after a death, and its part of the node's memory."""
    if limits.slots is not None and limits.micro_tokens is not None:
        setup = replace(setup, slots=limits.slots, micro_tokens=limits.micro_tokens, chunk_tokens=limits.chunk_tokens)
    if setup.memory is not None or limits.share >= 1:
        return setup
    from sweeper.engine.room import free_bytes

    return replace(setup, memory=int(PLANNED * limits.share * free_bytes(setup.device)))


def shared_pages(setup: EngineSetup, share: float) -> EngineSetup:
    """`setup` with a model whose file engines of one node can map in common, where there are several; else as it is."""
    model = Path(setup.model)
    if share >= 1 or setup.device != "cpu" or setup.training.dtype != "fp32" or not any(model.glob("*.safetensors")):
        return setup
    from sweeper.engine.stored import is_narrow, widen

    return replace(setup, model=str(derived("model-fp32", model, partial(widen, model)))) if is_narrow(model) else setup


def halved(limits: Limits, setup: EngineSetup, had: Capacity) -> Limits:
    """What an engine gets after one with `had` has died: half the slots, and half the tokens in a pass, but a chunk at least; where
    it was one trial at a time already, half the tokens in a chunk."""
    chunk = limits.chunk_tokens or setup.training.chunk_tokens or 1
    if had.slots > 1:
        return replace(limits, slots=had.slots // 2, micro_tokens=max(chunk, had.micro_tokens // 2))
    chunk = max(1, min(chunk, had.micro_tokens) // 2)
    return replace(limits, slots=1, micro_tokens=max(chunk, had.micro_tokens // 2), chunk_tokens=chunk)
