"""The engines of the `packed` executor during one run: what they say is heard, told, answered, and trials are handed to them.

Purpose: one loop, in the thread that called `run`.

    listen (ray.wait) -> reports and ends to the source -> decisions asked -> trials handed out -> engines called again

Trials are handed out as slots become free, to the engine with the fewest. Once nothing is left to hand out, a trial leaves an
engine that has much more to do than another (see `balance.py`).
An engine that dies or hangs gives its trials back, from their last checkpoints, and a new one starts with half the slots and half
the tokens in a pass: what the kernel kills for its memory looks like any kill.
With `deterministic` the engines go in rounds of a fixed number of steps, are listened to in their order, and no trial moves.
Does not know: the study, how an engine trains, how a cluster is started. Cost: 1 to 2 ms a message.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray

from sweeper.engine.base import Ended, EngineSetup, Event
from sweeper.errors import ResourceError
from sweeper.executors.actor import Limits, Message, halved
from sweeper.executors.balance import Moves, best_move, emptiest
from sweeper.executors.base import ASK_SECONDS, IDLE_SECONDS, Sharing, SourceGuard, Watch, calls_for_engine, tell_all
from sweeper.executors.interrupt import Interrupts
from sweeper.executors.plan import user_error
from sweeper.executors.remote import AskedActor, EngineHungError, EngineLostError, Phase, RemoteEngine
from sweeper.records import Action, Decision, Done, Ending, Outcome, Report, ReportKind, TrialSource, TrialSpec, Wait

LISTEN_SECONDS = 0.25
START_SECONDS = 20.0
"""How long the first engine that is ready waits for the others, so that the first trials are spread over all of them."""

QUEUE_SECONDS = 30.0
"""How long an engine may wait for room in the cluster before people are told."""

PREEMPT_SECONDS = 60.0
"""How long engines may take to finish a micro-step and write their last checkpoints."""

SILENT_SECONDS = 5.0
"""After so long without a message, whether the cluster still has a node is looked at, as often as this."""

ROUND_STEPS = 4
"""Steps of each engine in a round of the deterministic order."""

_STARTS = 2  # how often an engine may die before it is ready

_log = logging.getLogger(__name__)


class Fleet:
    """One run of the executor. `asked`: actors that exist already, one for an engine, in order."""

    def __init__(
        self,
        engines: list[RemoteEngine],
        setup: EngineSetup,
        source: TrialSource,
        interrupts: Interrupts,
        watch: Watch,
        asked: Sequence[AskedActor] = (),
    ) -> None:
        self._engines = engines
        self._actors = asked
        self._setup = setup
        self._source = source
        self._interrupts = interrupts
        self._watch = watch
        self._events: deque[tuple[RemoteEngine, Event]] = deque()
        self._crashes: Counter[int] = Counter()
        self._moves = Moves()
        self._most = 0
        self._said_queued = False
        self._begun = False
        self._began = time.monotonic()
        self._done = False
        self._hungry = True
        self._asked = 0.0
        self._heard = time.monotonic()
        self._tell = SourceGuard()

    def run(self) -> None:
        try:
            for index, engine in enumerate(self._engines):
                engine.start(Limits(), self._actors[index] if index < len(self._actors) else None)
            while not (self._done and not any(engine.inside for engine in self._engines)):
                if self._interrupts.requested:
                    raise KeyboardInterrupt
                self._turn()
        except KeyboardInterrupt:
            self._preempt("interrupted")
            raise
        except BaseException as error:
            if not self._tell.failed:
                self._preempt(f"the executor stopped: {error}")
            raise

    def _turn(self) -> None:
        said = self._listen()
        for engine, message in said:
            self._events.extend((engine, self._moves.whole(event)) for event in message.events)
        self._drain()
        for _, message in said:
            if message.refused is not None:
                raise user_error(*message.refused)
        self._steer(bool(said))
        if self._ready():
            self._hand_out()
            self._balance()
            self._call()

    # Listening.

    def _listen(self) -> list[tuple[RemoteEngine, Message]]:
        """Messages that have come, in the order of the engines; of all that were called, where the order must not vary."""
        calls = [engine.call for engine in self._engines if engine.call is not None]
        if not calls:
            time.sleep(IDLE_SECONDS)
            return []
        began = time.monotonic()
        together = len(calls) if self._setup.deterministic else 1
        came, _ = ray.wait(calls, num_returns=together, timeout=LISTEN_SECONDS)
        if came and len(came) < len(calls):
            came, _ = ray.wait(calls, num_returns=len(calls), timeout=0)
        # A driver that was stopped in there did not listen: no wait is longer than it was asked to be.
        self._keep_leases(set(came), min(time.monotonic() - began, LISTEN_SECONDS))
        if self._setup.deterministic and any(e.call is not None and e.call not in came for e in self._engines):
            return []
        said = [(engine, self._answer(engine)) for engine in self._engines if engine.call is not None and engine.call in came]
        if said:
            self._heard = time.monotonic()
        return said

    def _answer(self, engine: RemoteEngine) -> Message:
        try:
            return engine.answer()
        except EngineLostError as error:
            self._lost(engine, error)
            return Message()

    def _keep_leases(self, came: set[Any], seconds: float) -> None:
        for engine in self._engines:
            if engine.call is None or engine.call in came:
                continue
            try:
                engine.waited(seconds)
            except EngineLostError as error:
                self._lost(engine, error)
        queued = sum(engine.queued > QUEUE_SECONDS for engine in self._engines)
        if queued and not self._said_queued:
            self._said_queued = True
            self._watch.notice(
                f"{queued} of {len(self._engines)} engines wait for room: something else in the cluster holds its CPUs or GPUs; "
                "they begin when it lets go (`ray status` shows what does)"
            )
        if time.monotonic() - self._heard > SILENT_SECONDS:
            self._heard = time.monotonic()
            if not any(node["Alive"] for node in ray.nodes()):
                raise ResourceError("the Ray cluster has lost its last node; run the same command again to go on")

    # Engines that die.

    def _lost(self, engine: RemoteEngine, error: EngineLostError) -> None:
        """Gives the trials of a dead engine back, and starts another in its place."""
        why = str(error)
        had, began = engine.capacity, engine.phase is Phase.READY
        said = [event for other, event in self._events if other is engine]
        lost = engine.lose(hung=isinstance(error, EngineHungError))
        alone = sum(reached for _, reached in lost) == 1
        for trial, reached in lost:
            if not any(isinstance(event, Ended) and event.trial == trial.number for event in said):
                self._events.append((engine, Ended(trial.number, self._outcome(trial, reached, alone, why))))
        if began and had is not None:
            limits = halved(engine.limits, self._setup, had)
            self._watch.notice(
                f"an engine was lost ({why}) with {len(lost)} trials inside, which go on from their last checkpoints; "
                f"a new one starts with half its room: {limits.slots} slots, {limits.micro_tokens} tokens in a pass"
                + (f", chunks of {limits.chunk_tokens} (a batch in smaller parts)" if limits.chunk_tokens is not None else "")
            )
            engine.start(limits)
        elif engine.failed_starts < _STARTS:
            engine.start(engine.limits)
        else:
            self._give_up(why)
        self._drain()

    def _give_up(self, why: str) -> None:
        if all(engine.phase is Phase.GONE for engine in self._engines):
            raise ResourceError(
                f"every engine died {_STARTS} times before it was ready ({why}): the machine may have too little memory for this "
                "model; give executor.memory or fewer executor.workers, and run the same command again to go on"
            )
        self._watch.notice(f"an engine died {_STARTS} times before it was ready ({why}); the sweep goes on with the others")

    def _outcome(self, trial: TrialSpec, reached: bool, alone: bool, why: str) -> Outcome:
        """A trial comes back; one that was alone in an engine that died, and had been in another, is what kills them."""
        if not reached:
            reason = f"its engine was lost before it began ({why})"
            return Outcome(Ending.PREEMPTED, reason=reason, checkpoint=trial.resume_from)
        self._crashes[trial.number] += 1
        if alone and self._crashes[trial.number] > 1:
            times = self._crashes[trial.number]
            return Outcome(Ending.FAILED, reason=f"its engine was lost {times} times, at last with no other trial inside: {why}")
        return Outcome(Ending.PREEMPTED, reason=f"its engine was lost ({why})")

    # The source.

    def _drain(self) -> None:
        """Hands on every event; they leave the queue once the source has kept them, so that an interrupt in between loses none."""
        while self._events:
            said = list(self._events)
            news = [event for _, event in said if isinstance(event, Report) or not self._moves.is_move(event)]
            told = deque(self._tell(lambda: tell_all(self._source, news)))  # noqa: B023  called at once
            for engine, event in said:
                self._events.popleft()
                decision = told.popleft()[1] if told and told[0][0] is event else None
                if isinstance(event, Report):
                    assert decision is not None
                    self._report(engine, event, decision)
                elif self._moves.is_move(event):
                    self._move(event, engine)
                else:
                    self._moves.ended(event.trial)
                    engine.note(event)
                    self._hungry = True

    def _report(self, engine: RemoteEngine, report: Report, decision: Decision) -> None:
        engine.note(report)
        self._hungry = self._hungry or report.kind is not ReportKind.PROGRESS
        self._obey(decision, engine)

    def _steer(self, happened: bool) -> None:
        now = time.monotonic()
        parked = any(engine.parked for engine in self._engines)
        if not happened and now - self._asked < (IDLE_SECONDS * 4 if parked else ASK_SECONDS):
            return
        self._asked, self._hungry = now, True
        where = {number: engine for engine in self._engines for number in engine.inside}
        for decision in self._tell(self._source.decisions):
            if decision.trial in where:
                self._obey(decision, where[decision.trial])

    def _obey(self, decision: Decision, engine: RemoteEngine) -> None:
        if decision.trial in engine.inside and calls_for_engine(decision, decision.trial in engine.parked):
            engine.tell(decision)

    # Handing out.

    def _ready(self) -> bool:
        """Whether trials may be handed out: from when all engines are ready, or some for a while."""
        if self._begun:
            return not self._setup.deterministic or all(engine.call is None for engine in self._engines)
        ready = [engine for engine in self._engines if engine.phase is Phase.READY]
        if not ready:
            self._began = time.monotonic()
            return False
        late = self._setup.deterministic or time.monotonic() - self._began < START_SECONDS
        if late and any(engine.phase in (Phase.STARTING, Phase.OPENING) for engine in self._engines):
            return False
        self._begun = True
        self._watch.notice(self._sharing().plan())
        if warning := self._sharing().warning():
            self._watch.notice(warning)
        self._watch.sharing(self._sharing())
        return True

    def _sharing(self) -> Sharing:
        return Sharing(tuple(engine.capacity for engine in self._engines if engine.capacity is not None), self._most)

    def _hand_out(self) -> None:
        if not self._done and self._hungry and any(engine.free > 0 for engine in self._engines):
            for engine, trial in self._tell(self._ask):
                engine.give(trial)

    def _ask(self) -> list[tuple[RemoteEngine, TrialSpec]]:
        """Trials for the slots that are free, each for the engine with the fewest."""
        found: list[tuple[RemoteEngine, TrialSpec]] = []
        free = {engine.index: engine.free for engine in self._engines}
        inside = {engine.index: len(engine.inside) for engine in self._engines}
        with self._source.together():
            while not self._done and self._hungry and any(free.values()):
                engine = min((e for e in self._engines if free[e.index] > 0), key=lambda e: (inside[e.index], e.index))
                answer = self._source.next_trial()
                if isinstance(answer, Done):
                    self._done = True
                elif isinstance(answer, Wait):
                    self._hungry = False
                else:
                    found.append((engine, answer))
                    free[engine.index] -= 1
                    inside[engine.index] += 1
        return found

    def _balance(self) -> None:
        """Has one trial leave for an engine with less to do; the source never hears of it."""
        if self._setup.deterministic or self._moves.moving:
            return
        ready = [engine for engine in self._engines if engine.phase is Phase.READY]
        found = best_move([engine.load() for engine in ready])
        if found is None:
            return
        trial, _ = found
        self._moves.moving.add(trial)
        next(engine for engine in ready if trial in engine.inside).tell(Decision(trial, Action.PAUSE, "moves to an idle engine"))

    def _move(self, paused: Ended, engine: RemoteEngine) -> None:
        """Hands a trial that left for another engine on to the one with the least to do, with what was decided meanwhile."""
        trial, reached = engine.inside[paused.trial], engine.reached[paused.trial]
        late = engine.take(paused.trial)
        self._moves.left(paused)
        place = emptiest([other.load() for other in self._engines])
        assert place is not None  # the slot that it left is free
        target = self._engines[place]
        target.give(replace(trial, resume_from=paused.outcome.checkpoint), reached)
        for decision in late:
            target.tell(decision)
        _log.info("trial %d goes on in engine %d, which had less to do than engine %d", trial.number, target.index, engine.index)

    def _call(self) -> None:
        most = max(len(engine.inside) for engine in self._engines)
        if most > self._most:
            self._most = most
            self._watch.sharing(self._sharing())
        for engine in self._engines:
            if engine.phase is Phase.READY and engine.call is None and engine.busy:
                engine.work(ROUND_STEPS if self._setup.deterministic else None)

    # The end.

    def _preempt(self, reason: str) -> None:
        """Ends every trial as PREEMPTED, with the checkpoint that its engine could still write."""
        try:
            self._hear_last()
        finally:  # a second Ctrl-C ends the waiting, not the telling
            for engine in self._engines:
                for number, trial in sorted(engine.inside.items()):
                    last = trial.resume_from if number in engine.unsent else None
                    self._source.on_end(number, Outcome(Ending.PREEMPTED, reason=reason, checkpoint=last))
                engine.inside.clear()

    def _hear_last(self) -> None:
        calls = {call: engine for engine in self._engines if engine.inside for call in engine.last_words()}
        until = time.monotonic() + PREEMPT_SECONDS
        said: list[tuple[RemoteEngine, Event]] = list(self._events)
        self._events.clear()
        if calls:
            ray.wait(list(calls), num_returns=len(calls), timeout=until - time.monotonic())
        for call, engine in calls.items():
            try:
                message: Message = ray.get(call, timeout=0)
            except Exception as error:
                _log.warning("an engine wrote no last checkpoints: %s", str(error).split("\n")[0])
                continue
            said.extend((engine, self._moves.whole(event)) for event in message.events)
        for engine, event in said:
            if isinstance(event, Report):
                self._source.on_report(event)  # the answer comes too late
            elif self._moves.is_move(event):
                self._source.on_end(event.trial, replace(event.outcome, ending=Ending.PREEMPTED, reason="interrupted"))
            else:
                self._source.on_end(event.trial, event.outcome)
            engine.note(event)
