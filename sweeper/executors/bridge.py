"""Ray Tune's questions, handed to a TrialSource: the searcher, the scheduler, the callback and the stopper share one `Bridge`.

    searcher.suggest          -> next_trial          a new Tune trial for each stay, under the same Sweeper number
    scheduler.on_trial_result -> on_report           answers go to the worker before Tune lets it train on
    searcher.on_trial_complete-> on_end              whatever ended it: the engine, a decision, a crash
    callback.on_step_begin    -> decisions           at least every second; Ctrl-C and errors are acted on here

Tune itself only ever hears CONTINUE, or STOP once the engine has let go of the trial. All calls come from the thread that runs
Tune. An error of the source never passes through Tune (which would wrap or swallow it): it is kept, everything is stopped, and
the executor raises it.
Does not know: what a study is, how the engine trains. Cost: 1 to 2 ms a message.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.tune import Callback, Stopper
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from sweeper.engine.base import Ended
from sweeper.errors import ResourceError
from sweeper.executors.base import ASK_SECONDS, calls_for_engine, tell_all
from sweeper.executors.interrupt import Interrupts
from sweeper.executors.plan import user_error
from sweeper.executors.worker import MESSAGE, Message
from sweeper.records import Done, Ending, Outcome, Report, ReportKind, TrialSource, TrialSpec, Wait

PREEMPT_SECONDS = 60.0
"""How long workers may take to finish a micro-step and write their last checkpoints."""

SILENT_SECONDS = 5.0
"""After so long without a message, whether the cluster still has a node is looked at, as often as this."""

_LOST_BEFORE_START = 1  # how often a trial whose worker died before its first message is given back, not failed

_log = logging.getLogger(__name__)


@dataclass
class Stay:
    """One stay of a trial in a worker: one Tune trial."""

    spec: TrialSpec
    trial: Any = None  # Tune's
    parked: bool = False
    heard: int = 0  # number of the last message
    outcome: Outcome | None = None

    @property
    def worker(self) -> Any:
        """The actor, or None before it started."""
        return self.trial.temporary_state.ray_actor if self.trial is not None else None


class Bridge:
    """What Tune's four plug-ins share. `error` is what the executor has to raise after Tune returned."""

    def __init__(self, source: TrialSource, interrupts: Interrupts, config: dict[str, Any]) -> None:
        self.error: BaseException | None = None
        self._source = source
        self._interrupts = interrupts
        self._config = config
        self._stays: dict[str, Stay] = {}
        self._lost: Counter[int] = Counter()
        self._asked = 0.0
        self._source_failed = False
        self._last_word = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its stopper into a snapshot of the experiment, which nobody reads; a source is no such thing."""
        return {}

    @property
    def stopped(self) -> bool:
        """Whether everything is to end now."""
        return self.error is not None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A configuration for Tune: None to be asked again, FINISHED for never again."""
        self.tick()
        if self.stopped:
            return str(Searcher.FINISHED)
        answer: TrialSpec | Wait | Done = Wait()
        with self._asking():
            answer = self._source.next_trial()
        if isinstance(answer, Done):
            return str(Searcher.FINISHED)
        if isinstance(answer, Wait):
            return None
        self._stays[trial_id] = Stay(answer)
        return {**self._config, "trial": answer}

    def added(self, trial: Any) -> None:
        """Tune made a trial of a suggestion."""
        self._stays[trial.trial_id].trial = trial

    def heard(self, trial: Any, message: Message) -> str:
        """A worker's message: reports to the source, its answers to the worker. Returns Tune's decision."""
        stay = self._stays.get(trial.trial_id)
        if stay is None:
            return str(TrialScheduler.STOP)
        self._take(stay, message)
        if not self.stopped:
            self._steer()
        return str(TrialScheduler.CONTINUE if stay.outcome is None else TrialScheduler.STOP)

    def failed(self, trial: Any) -> None:
        """A worker died, or raised what no trial may raise."""
        stay = self._stays.get(trial.trial_id)
        if stay is None or stay.outcome is not None:
            return
        error = _error_of(trial)
        number = stay.spec.number
        if isinstance(error, RayActorError) and not stay.heard and self._lost[number] < _LOST_BEFORE_START:
            self._lost[number] += 1
            stay.outcome = Outcome(Ending.PREEMPTED, reason="its worker died before it began")
        else:
            stay.outcome = Outcome(Ending.FAILED, reason=_reason(error))

    def left(self, trial_id: str) -> None:
        """A trial left its worker. A second call is nothing."""
        stay = self._stays.pop(trial_id, None)
        if stay is None or self._source_failed:
            return
        with self._asking():
            self._source.on_end(stay.spec.number, stay.outcome or Outcome(Ending.FAILED, reason="its worker was lost"))
        self._asked = 0.0

    def tick(self) -> None:
        """Between two events, at least every second: acts on Ctrl-C, and asks for decisions."""
        if self._interrupts.requested and not self.stopped:
            self.error = KeyboardInterrupt()
        if time.monotonic() - self._last_word > SILENT_SECONDS:
            self._look_for_nodes()
        if not self.settled() and time.monotonic() - self._asked >= ASK_SECONDS:
            self._steer()

    def _look_for_nodes(self) -> None:
        """Tune would wait for ever for a worker that no node can hold."""
        self._last_word = time.monotonic()
        if not any(node["Alive"] for node in ray.nodes()):
            self.error = self.error or ResourceError("the Ray cluster has lost its last node; run the same command again to go on")

    def settled(self) -> bool:
        """Whether everything is to end, and every stay has."""
        if self.stopped:
            self.preempt()
        return self.stopped

    def preempt(self, ask_workers: bool = True) -> None:
        """Ends every stay. Workers write a last checkpoint if they are asked; a source that failed is told nothing more."""
        stays = list(self._stays.values())
        self._stays.clear()
        if self._source_failed:
            return
        if ask_workers:
            self._hear_last([stay for stay in stays if stay.worker is not None])
        for stay in stays:
            reason = "interrupted" if stay.heard else "interrupted before it began"
            with self._asking():
                self._source.on_end(stay.spec.number, stay.outcome or Outcome(Ending.PREEMPTED, reason=reason))

    def _hear_last(self, stays: list[Stay]) -> None:
        calls = {stay.worker.preempt.remote(stay.spec.number): stay for stay in stays}
        answered, _ = ray.wait(list(calls), num_returns=len(calls), timeout=PREEMPT_SECONDS) if calls else ([], [])
        for call in answered:
            try:
                messages: list[Message] = ray.get(call)
            except Exception as error:
                _log.warning("the worker of trial %d wrote no last checkpoint: %s", calls[call].spec.number, error)
                continue
            for message in messages:
                self._take(calls[call], message)

    def _take(self, stay: Stay, message: Message) -> None:
        self._last_word = time.monotonic()
        if message.number <= stay.heard:
            return
        stay.heard = message.number
        if message.refused is not None:
            self.error = self.error or user_error(*message.refused)
        for event in message.events:
            if isinstance(event, Ended):
                stay.outcome = event.outcome
        reports = [event for event in message.events if isinstance(event, Report)]
        with self._asking():
            for report, decision in tell_all(self._source, reports):
                if isinstance(report, Report) and decision is not None:
                    stay.parked = stay.parked or report.kind is ReportKind.RUNG
                    self._obey(stay, decision)

    def _steer(self) -> None:
        self._asked = time.monotonic()
        stays = {stay.spec.number: stay for stay in self._stays.values()}
        with self._asking():
            for decision in self._source.decisions():
                if decision.trial in stays:
                    self._obey(stays[decision.trial], decision)

    def _obey(self, stay: Stay, decision: Any) -> None:
        """Tells the worker, ahead of the `train` that Tune sends when we return."""
        if not self.stopped and stay.outcome is None and stay.worker is not None and calls_for_engine(decision, stay.parked):
            stay.parked = False
            stay.worker.decide.remote(decision)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """A call of the source. KeyboardInterrupt is a wish to stop; any other error means that the source is gone."""
        if self._source_failed:
            return
        try:
            yield
        except KeyboardInterrupt as error:
            self.error = self.error or error
        except BaseException as error:
            self._source_failed = True
            self.error = error


def _error_of(trial: Any) -> BaseException | None:
    """What Tune wrote down of a failure, on this node, a moment ago."""
    try:
        with open(trial.pickled_error_file, "rb") as file:
            error: BaseException = ray.cloudpickle.load(file)
    except Exception:
        return None
    return error


def _reason(error: BaseException | None) -> str:
    if error is None or isinstance(error, RayActorError):
        return "worker died"
    cause = error.cause if isinstance(error, RayTaskError) and error.cause is not None else error
    return f"{type(cause).__name__}: {cause}".strip().split("\n")[0]


class BridgeSearcher(Searcher):  # type: ignore[misc]
    """Asks the bridge for trials, and tells it what left."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self._bridge = bridge

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        return self._bridge.suggest(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._bridge.left(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is the one truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a sweep goes on from its study."""


class BridgeScheduler(FIFOScheduler):  # type: ignore[misc]
    """Hands every message to the bridge."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self._bridge = bridge

    @property
    def supports_buffered_results(self) -> bool:
        """False: an answer must come before the next step."""
        return False

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._bridge.added(trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return self._bridge.heard(trial, result[MESSAGE])

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._bridge.failed(trial)


class BridgeCallback(Callback):  # type: ignore[misc]
    """Wakes the bridge between two events."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._bridge.tick()


class BridgeStopper(Stopper):  # type: ignore[misc]
    """Lets Tune end in its own way, with its actors and placement groups, once the bridge has stopped."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._bridge.settled()
