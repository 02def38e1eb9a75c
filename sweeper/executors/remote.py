"""One engine of the `packed` executor as the driver sees it: its actor, what is inside, what it is to be told next, its lease.

    STARTING ── hello ──> OPENING ── open ──> READY          STARTING: waits for room in the cluster, so it has no lease
       ^                    │                   │
       └──── a new actor ───┴──────── died ─────┘            GONE: died twice at its start

One call is under way at a time. Ray does not notice a worker that hangs, so a lease is kept here: it counts the time that the
driver spent waiting for the answer, never the time in which the driver itself did not listen.
Does not know the source of trials. Cost: nothing but its calls.
"""

from __future__ import annotations

import enum
import os
import signal
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeper.engine.base import Capacity, Ended
from sweeper.executors.actor import EngineActor, Limits, Message, Orders
from sweeper.executors.balance import Left, Load
from sweeper.executors.cluster import Room
from sweeper.records import Decision, Report, ReportKind, TrialSpec

LEASE_SECONDS = 60.0
"""The least time after which an engine that says nothing is given up; never less than LEASE_TIMES its longest answer."""

LEASE_TIMES = 20.0
FIRST_SECONDS = 300.0
"""The same before an engine's first message of a trial: nobody knows yet how long one micro-step of this model takes."""

OPEN_SECONDS = 1800.0
"""The same while it fetches and loads the model, and measures."""


class Phase(enum.StrEnum):
    """Where an engine's life stands; drawn above."""

    STARTING = "starting"
    OPENING = "opening"
    READY = "ready"
    GONE = "gone"


class EngineLostError(Exception):
    """An engine died, hung, or raised what no engine may raise; the sentence says which."""


class EngineHungError(EngineLostError):
    """It has a process, which may be deaf."""


@dataclass(frozen=True)
class AskedActor:
    """An actor that the cluster was asked for, with its first call under way."""

    actor: Any
    hello: Any


def ask_actor(room: Room) -> AskedActor:
    """Asks for an actor with what `room` gives each. Returns at once."""
    actor = ray.remote(EngineActor).options(num_cpus=room.cpus, num_gpus=room.gpus, max_restarts=0, max_task_retries=0).remote()
    return AskedActor(actor, actor.hello.remote())


class RemoteEngine:
    """See above. `inside` are the trials handed out to it, `parked` those of them that wait for a decision, `reached` the examples
    that each has told of."""

    def __init__(self, index: int, porter: tuple[str, str], room: Room, least_lease: float = LEASE_SECONDS) -> None:
        self.index = index
        self.phase = Phase.GONE
        self.capacity: Capacity | None = None
        self.limits = Limits()
        self.inside: dict[int, TrialSpec] = {}
        self.parked: set[int] = set()
        self.reached: dict[int, int] = {}
        self.call: Any = None
        self.failed_starts = 0
        self._actor: Any = None
        self._pid = 0
        self._node = ""
        self._porter = porter
        self._room = room
        self._trials: list[TrialSpec] = []  # of the next call
        self._decisions: list[Decision] = []
        self._least = least_lease
        self._longest = 0.0
        self._waited = 0.0

    def start(self, limits: Limits, asked: AskedActor | None = None) -> None:
        """A new actor, once the cluster has room for it; or the one that was asked for before."""
        self.limits = limits
        self.phase = Phase.STARTING
        self._longest = 0.0
        asked = asked or ask_actor(self._room)
        self._actor = asked.actor
        self._send(asked.hello)

    @property
    def free(self) -> int:
        """Slots that no trial was handed out to."""
        return self.capacity.slots - len(self.inside) if self.phase is Phase.READY and self.capacity is not None else 0

    @property
    def busy(self) -> bool:
        """Whether a call would do anything: something to be told, or a trial that trains."""
        return bool(self._trials or self._decisions or self.inside.keys() - self.parked)

    @property
    def unsent(self) -> set[int]:
        """Trials handed out that the next call brings to the engine."""
        return {trial.number for trial in self._trials}

    def give(self, trial: TrialSpec, reached: int = 0) -> None:
        """Hands a trial out; it leaves with the next call."""
        self.inside[trial.number] = trial
        self.reached[trial.number] = reached
        self._trials.append(trial)

    def tell(self, decision: Decision) -> None:
        """A decision on a trial inside; it leaves with the next call."""
        self.parked.discard(decision.trial)
        self._decisions.append(decision)

    def load(self) -> Load:
        """What is left to train here. A trial may leave between two calls, when it trains and nothing is on its way to it."""
        busy = self.parked | self.unsent | {decision.trial for decision in self._decisions}
        left = {n: Left(max(0, trial.examples - self.reached[n]), trial.examples) for n, trial in self.inside.items()}
        movable = {} if self.call is not None else {number: one for number, one in left.items() if number not in busy}
        staying = sum(one.examples for number, one in left.items() if number not in movable and number not in self.parked)
        return Load(self.free, movable, staying)

    def take(self, trial: int) -> list[Decision]:
        """Lets go of a trial that was told to pause: the decisions that came too late for it here."""
        late = [decision for decision in self._decisions if decision.trial == trial]
        self._forget(trial)
        return late

    def note(self, event: Report | Ended) -> None:
        """Keeps up with an event that the source was told of."""
        if isinstance(event, Report):
            self.reached[event.trial] = event.examples
            if event.kind is ReportKind.RUNG:
                self.parked.add(event.trial)
            return
        self._forget(event.trial)

    def _forget(self, trial: int) -> None:
        """The trial is in no slot here any more."""
        self.inside.pop(trial, None)
        self.reached.pop(trial, None)
        self.parked.discard(trial)
        self._decisions = [decision for decision in self._decisions if decision.trial != trial]

    def work(self, steps: int | None = None) -> None:
        """Sends what there is to be told, and has the engine go on."""
        orders = Orders(tuple(self._decisions), tuple(self._trials), steps)
        self._decisions, self._trials = [], []
        self._send(self._actor.work.remote(orders))

    def waited(self, seconds: float) -> None:
        """Counts time that the driver listened. Raises EngineHungError when the lease is over."""
        self._waited += seconds
        lease = self.lease
        if self.call is not None and lease is not None and self._waited > lease:
            raise EngineHungError(f"it said nothing for {self._waited:.0f} s")

    @property
    def queued(self) -> float:
        """Seconds that the engine has waited for room in the cluster; 0 once it has it."""
        return self._waited if self.phase is Phase.STARTING else 0.0

    @property
    def lease(self) -> float | None:
        """Seconds that an answer to the call under way may take; None for ever."""
        if self.phase is Phase.STARTING:
            return None
        if self.phase is Phase.OPENING:
            return OPEN_SECONDS
        known = max(self._least, LEASE_TIMES * self._longest)
        return known if self._longest else max(FIRST_SECONDS, known)

    def answer(self) -> Message:
        """The answer to the call under way, which has come. Raises EngineLostError."""
        call, self.call = self.call, None
        try:
            said = ray.get(call)
        except RayTaskError as error:
            cause = error.cause or error
            raise EngineLostError(f"{type(cause).__name__}: {cause}".strip().split("\n")[0]) from error
        except RayError as error:
            raise EngineLostError("worker died") from error
        if self.phase is Phase.STARTING:
            self._pid, self._node = said
            self.limits = replace(self.limits, share=self._room.share(self._node))
            self.phase = Phase.OPENING
            self._send(self._actor.open.remote(self._porter, self.limits))
            return Message()
        message: Message = said
        if self.phase is Phase.OPENING and message.capacity is not None:
            self.capacity = message.capacity
            self.phase = Phase.READY
            self.failed_starts = 0
        elif self.phase is Phase.READY:
            self._longest = max(self._longest, message.seconds)
        return message

    def last_words(self) -> list[Any]:
        """Calls that are under way, with a new one that checkpoints and ends every trial inside; in their order."""
        calls = [self.call, self._actor.preempt.remote()] if self.phase is Phase.READY else []
        self.call = None
        return [call for call in calls if call is not None]

    def lose(self, hung: bool) -> list[tuple[TrialSpec, bool]]:
        """Ends the actor, and empties its slots: the trials that were inside, and whether each had reached it.

        A process that `hung` may be one that hears nobody; it is ended by its node, or would keep its memory.
        """
        lost = [(trial, trial.number not in self.unsent) for trial in self.inside.values()]
        if self.phase is not Phase.READY:
            self.failed_starts += 1
        self.kill()
        if hung:
            _end_process(self._node, self._pid)
        self.inside.clear()
        self.parked.clear()
        self.reached.clear()
        self._trials, self._decisions = [], []
        return lost

    def kill(self) -> None:
        """Ends the actor, whatever it does."""
        self.phase = Phase.GONE
        self.call = None
        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None

    def _send(self, call: Any) -> None:
        self.call = call
        self._waited = 0.0


def _end_process(node: str, pid: int) -> None:
    if node == ray.get_runtime_context().get_node_id():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return
    there = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    ray.remote(os.kill).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(pid, signal.SIGKILL)
