"""The engine: trains the trials in its slots, piece by piece, and says what came of it.

The scheduler decides whose turn it is, the net does the arithmetic, `trial.py` holds a trial's own rules; this file carries
trials through their life: batch -> step -> (evaluation -> report -> decision) -> ... -> end. Nothing that a trial does raises
out of `step`: it ends FAILED with its reason, and the others go on, also those that shared the pass it broke (`again.py`).
Pieces end by count, never by the clock. The clock decides when a silent trial's PROGRESS is told and when a checkpoint between
rungs is written; with `setup.deterministic` PROGRESS comes every PROGRESS_PIECES pieces, and such a checkpoint is named by the
next report, so that the same calls give the same events (their times and those names aside).
Does not know Ray, Optuna, or who drives it. Cost: its own work per piece is microseconds; a model and `slots` trials in memory.
"""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from sweeper.data.tokens import TokenSet
from sweeper.engine import evaluate
from sweeper.engine.again import Again
from sweeper.engine.base import Capacity, Ended, EngineSetup, Event
from sweeper.engine.batch import Batches
from sweeper.engine.capacity import keeps_rows_apart, plan_capacity, require_room
from sweeper.engine.checkpoint import Checkpoint, Measured, Progress, load_checkpoint, save_checkpoint
from sweeper.engine.memory import NO_ROOM, ran_out, with_room
from sweeper.engine.net import Net, build_net
from sweeper.engine.packed import Chunk
from sweeper.engine.params import read_params
from sweeper.engine.scheduler import Phase, Schedule, Scheduler, Work
from sweeper.engine.seeds import mix
from sweeper.engine.slots import Slots
from sweeper.engine.start import study_start
from sweeper.engine.trial import Running
from sweeper.engine.validation import Validation
from sweeper.errors import ModelError, SweeperError, TrialError, UserError
from sweeper.records import Action, Decision, Depot, Ending, Report, ReportKind, TrialSpec

PROGRESS_SECONDS = 1.0
PROGRESS_PIECES = 8
MOST_ROWS = 1024
"""Rows in a pass. Each costs work of its own (spans, caches, outcomes), so that a pass of many tiny ones is not endless."""

_KEPT_CHECKPOINTS = 2  # the driver may not know the newest yet

log = logging.getLogger(__name__)


class TrialEngine:
    """Implements `base.Engine`. Raises ModelError or DataError if the setup cannot be trained at all."""

    def __init__(self, setup: EngineSetup, depot: Depot) -> None:
        torch.set_num_threads(setup.threads)
        self._setup = setup
        self._depot = depot
        self._train_data = TokenSet(setup.train)
        self._validation = Validation(setup, self._train_data.info, TokenSet(setup.validation), depot)
        self._chunk_tokens = _number(setup.training.chunk_tokens, "chunk_tokens")
        self._net: Net = build_net(setup)
        self._net.begin_with(study_start([self._train_data, self._validation.data]))
        self._vocabulary = int(_vocabulary(setup))
        self._capacity = replace(self._measure_capacity(), steady=keeps_rows_apart(setup, self._net))
        self._slots = Slots(self._capacity.slots)
        self._scheduler = Scheduler(self._capacity.micro_tokens, MOST_ROWS)
        self._again = Again(self._scheduler, self._next)
        self._pieces = 0
        self._running: dict[int, Running] = {}

    def _measure_capacity(self) -> Capacity:
        """What the setup says; what it leaves open is measured, where more than one trial may share the model."""
        setup = self._setup
        if setup.slots == 0:
            return plan_capacity(setup, self._net, self._train_data, self._validation.data)
        # Where tokens are given too, and no order asks for them, a killed engine is followed, whose rows were looked at; memory
        # may be short for the moment, and the sweep is to go on.
        if setup.micro_tokens is None or setup.deterministic:
            require_room(setup, self._net, self._train_data, self._validation.data)
        return Capacity(setup.slots, setup.micro_tokens or self._chunk_tokens)

    def capacity(self) -> Capacity:
        return self._capacity

    def available(self) -> int:
        return self._slots.available_size()

    def trials(self) -> list[int]:
        return self._scheduler.trials()

    def admit(self, trial: TrialSpec) -> None:
        if trial.number in self._running:
            raise TrialError(f"trial {trial.number} is in a slot already")
        params = read_params(trial.params)
        found = load_checkpoint(self._depot, trial, trial.resume_from) if trial.resume_from else None
        slot = self._slots.allocate()
        try:
            row = with_room(lambda: self._net.place(slot, params, trial.seed))
            if found is not None:
                row.load(found.tensors, found.progress.steps)
                self._net.updated(slot)
        except (ModelError, ValueError) as error:
            self._slots.free(slot)
            raise TrialError(f"trial {trial.number} cannot be started: {error}") from error
        except Exception as error:
            self._slots.free(slot)
            if not ran_out(error):
                raise
            others = len(self._running)
            if others == 0:
                raise TrialError(f"trial {trial.number} cannot be started: {NO_ROOM}") from error
            raise MemoryError(f"memory has no room for trial {trial.number} beside {others} others") from error
        progress = found.progress if found is not None else Progress()
        chunk_tokens = min(n for n in (self._chunk_tokens, self._setup.chunk_tokens, progress.chunk_tokens) if n is not None)
        if chunk_tokens < self._chunk_tokens:
            progress.chunk_tokens = chunk_tokens
        running = Running(
            spec=trial,
            slot=slot,
            params=params,
            row=row,
            batches=Batches(self._train_data, trial.seed, params.batch_size, trial.examples, chunk_tokens),
            progress=progress,
            best_weights=_best(found),
            checkpointed=time.monotonic(),
            reported=time.monotonic(),
            reported_piece=self._pieces,
        )
        if trial.resume_from:
            running.checkpoints.append(trial.resume_from)
        self._running[trial.number] = running
        self._scheduler.add(trial.number)
        self._next(running)

    def step(self) -> list[Event]:
        if events := self._settle(self.trials()):  # numbers due at the same examples need no work
            return events
        work = self._scheduler.schedule()
        if not work:
            return []
        self._pieces += 1
        short = False
        try:
            self._do(work)
        except Exception as error:
            short = ran_out(error)
            events += [] if short else self._blame(work, error)
        if short:  # outside the handler, whose error still holds what the failed pass allocated
            trials = [self._running[number] for number in work.trials()]
            events += [self._end(running, Ending.FAILED, NO_ROOM) for running in self._again.with_less(work, trials)]
        return events + self._settle(work.trials()) + self._progress()

    def _blame(self, work: Schedule, error: Exception) -> list[Event]:
        """Ends a trial that failed by itself; of several that failed together each is to show alone whose fault it was."""
        numbers = work.trials()
        if len(numbers) == 1 or isinstance(error, UserError):
            return [self._failed(number, error) for number in numbers]
        self._again.apart(work, [self._running[number] for number in numbers], error)
        return []

    def _settle(self, numbers: Sequence[int]) -> list[Event]:
        """What follows for those of `numbers` whose batch or evaluation is complete: a step, a report, an end."""
        events: list[Event] = []
        for number in numbers:
            running = self._running.get(number)
            if running is None or self._scheduler.phase(number) is not Phase.WAITING:
                continue
            try:
                if running.batch is not None:
                    events += self._complete_batch(running)
                elif running.evaluation is not None and running.progress.due:
                    events += self._complete_evaluation(running)
            except Exception as error:
                events.append(self._failed(number, error))
        return events

    def decide(self, decision: Decision) -> list[Ended]:
        running = self._running.get(decision.trial)
        if running is None or decision.action is Action.LATER:
            return []
        if decision.action is Action.STOP:
            return [self._end(running, Ending.PRUNED, decision.reason)]
        if decision.action is Action.PAUSE:
            return [self._end(running, Ending.PAUSED, decision.reason, checkpoint=self._checkpoint(running))]
        if self._scheduler.phase(decision.trial) is Phase.PARKED:
            self._scheduler.unpark(decision.trial)
            self._next(running)
        return []

    def preempt(self) -> list[Ended]:
        return [self._preempt(self._running[number]) for number in self.trials()]

    def close(self) -> None:
        self._running.clear()
        self.__dict__.pop("_net", None)
        gc.collect()

    def _preempt(self, running: Running) -> Ended:
        # A parked trial has no decision yet: its rung's checkpoint, written before the report, has it report again.
        parked = self._scheduler.phase(running.spec.number) is Phase.PARKED
        name = running.checkpoints[-1] if parked else self._checkpoint(running)
        return self._end(running, Ending.PREEMPTED, checkpoint=name)

    def _next(self, running: Running) -> None:
        """A waiting trial goes on: to an evaluation that is due, else to its next batch."""
        number = running.spec.number
        if not running.progress.due:
            running.batch = running.batches.at(running.progress.examples)
            running.losses = {}
            self._scheduler.offer(number, running.batch.sizes, rows=[len(chunk) for chunk in running.batch.chunks])
            return
        nominal = running.progress.due[0]
        count = self._validation.rows(running, nominal)
        if running.evaluation is None or running.evaluation.count != count:
            running.evaluation, running.measured = self._validation.begin(running.slot, count, running.batches.chunk_tokens), None
        if chunks := running.evaluation.offered():
            rows = [len(chunk.rows) for chunk in chunks]
            self._scheduler.offer(number, [chunk.tokens for chunk in chunks], chunks[0].work, rows)

    def _do(self, work: Schedule) -> None:
        """One pass over what is scheduled."""
        if work.work is Work.TRAIN:
            self._train(work.chunks)
            return
        began = time.monotonic()
        asked: list[tuple[Running, evaluate.Evaluation]] = []
        for number, _ in work.chunks:
            running = self._running[number]
            assert running.evaluation is not None
            asked.append((running, running.evaluation))
        evaluate.work(self._net, [evaluation for _, evaluation in asked])
        seconds = time.monotonic() - began
        for running, _ in asked:
            running.progress.evaluate_seconds += seconds / len(asked)

    def _train(self, chosen: Sequence[tuple[int, int]]) -> None:
        """One micro-step: the chosen chunks forward and backward together."""
        began = time.monotonic()
        chunks: list[Chunk] = []
        sizes: list[int] = []
        for number, index in chosen:
            running = self._running[number]
            assert running.batch is not None
            chunks.append(
                Chunk(
                    slot=running.slot,
                    rows=[self._train_data.row(row) for row in running.batch.chunks[index]],
                    weight=1 / max(1, running.batch.targets),
                    smoothing=running.params.label_smoothing,
                    seed=mix(running.spec.seed, 3, running.progress.steps, index),
                )
            )
            sizes.append(running.batch.sizes[index])
        losses = self._net.train(chunks)
        seconds = time.monotonic() - began
        for (number, index), loss, size in zip(chosen, losses, sizes, strict=True):
            self._running[number].losses[index] = loss
            self._running[number].progress.train_seconds += seconds * size / sum(sizes)

    def _complete_batch(self, running: Running) -> list[Event]:
        """Takes the optimizer step."""
        self._optimize(running)
        running.batch = None
        events: list[Event] = []
        if not running.progress.due and time.monotonic() - running.checkpointed >= self._setup.checkpoint_seconds:
            name = self._checkpoint(running)
            if self._setup.deterministic:
                running.untold = name
            else:
                events.append(self._report(running, ReportKind.PROGRESS, running.progress.examples, checkpoint=name))
        self._next(running)
        return events

    def _optimize(self, running: Running) -> None:
        began = time.monotonic()
        assert running.batch is not None
        loss = math.fsum(running.losses.values())
        running.check_loss(loss, self._vocabulary)
        norm = running.row.gradient_norm()
        if not math.isfinite(norm):
            raise TrialError(f"the gradient norm is {norm} at step {running.progress.steps + 1}; a lower learning rate may help")
        running.row.clip(norm, running.params.clip)
        rate, p = running.learning_rate(), running.params
        running.row.step(rate, p.weight_decay, p.beta1, p.beta2)
        self._net.updated(running.slot)
        running.count_step(running.batch, loss, rate, norm)
        running.measured = None
        running.progress.train_seconds += time.monotonic() - began

    def _complete_evaluation(self, running: Running) -> list[Event]:
        """Goes on to what is to be decoded, else reports the evaluation that is due first."""
        assert running.evaluation is not None
        if not running.evaluation.done:
            self._next(running)
            return []
        began = time.monotonic()
        nominal = running.progress.due[0]
        if running.measured is None:
            running.measured = self._validation.measure(running, nominal)
        running.progress.evaluate_seconds += time.monotonic() - began
        return self._evaluated(running, nominal)

    def _evaluated(self, running: Running, nominal: int) -> list[Event]:
        """Reports the evaluation `nominal`, and what follows: parking, the end, or going on."""
        assert running.measured is not None
        measured, p = replace(running.measured, nominal=nominal), running.progress
        rung, final = running.is_rung(nominal), running.is_final(nominal)
        name = self._checkpoint(running) if rung else None
        kind = ReportKind.RUNG if rung else ReportKind.EVALUATION
        events: list[Event] = [self._report(running, kind, nominal, measured, name)]
        p.due.pop(0)
        p.interval_loss, p.interval_steps = 0.0, 0
        p.last = measured
        if self._validation.is_best(measured, p.best):
            p.best = measured
            running.best_weights = with_room(running.row.weights.clone)
        if not p.due:
            running.evaluation = None
        if rung:
            self._scheduler.park(running.spec.number)
        elif final:
            events.append(self._completed(running))
        else:
            self._next(running)
        return events

    def _completed(self, running: Running) -> Ended:
        """Exports the weights that the trial's value was measured on, and ends it."""
        if running.best_weights is not None:
            running.row.weights.copy_(running.best_weights)
            self._net.updated(running.slot)
        name = f"adapters/{running.spec.study}/{running.spec.number}"
        self._depot.put(name, with_room(lambda: self._net.export(running.slot)))
        return self._end(running, Ending.COMPLETED, adapter=name)

    def _checkpoint(self, running: Running) -> str:
        """Writes a checkpoint of the last step, and removes the one before the previous."""
        tensors = dict(running.row.state())
        if running.best_weights is not None:
            tensors["best"] = running.best_weights
        name = with_room(lambda: save_checkpoint(self._depot, running.spec, running.progress, tensors))
        if name not in running.checkpoints:
            running.checkpoints.append(name)
        while len(running.checkpoints) > _KEPT_CHECKPOINTS:
            self._depot.remove(running.checkpoints.popleft())
        running.checkpointed = time.monotonic()
        return name

    def _progress(self) -> list[Event]:
        """A PROGRESS report of every trial that was silent for a while, parked ones included."""
        now = time.monotonic()
        events: list[Event] = []
        for running in self._running.values():
            by_count = self._pieces - running.reported_piece >= PROGRESS_PIECES
            if by_count if self._setup.deterministic else now - running.reported >= PROGRESS_SECONDS:
                events.append(self._report(running, ReportKind.PROGRESS, running.progress.examples))
        return events

    def _report(
        self, running: Running, kind: ReportKind, nominal: int, measured: Measured | None = None, checkpoint: str | None = None
    ) -> Report:
        running.reported, running.reported_piece = time.monotonic(), self._pieces
        name, running.untold = checkpoint or running.untold, None
        return running.report(kind, nominal, self._setup.worker, measured, name)

    def _failed(self, number: int, error: Exception) -> Ended:
        if isinstance(error, UserError):
            raise error  # a full disk, say: no trial's fault, and none may be lost to it
        if isinstance(error, SweeperError):
            reason = str(error)
        elif ran_out(error):
            reason = "the device ran out of memory; a smaller rank or max_length, or fewer slots, needs less"
        else:
            log.exception("trial %d failed", number, exc_info=error)
            reason = f"{type(error).__name__}: {error}"
        return self._end(self._running[number], Ending.FAILED, reason)

    def _end(
        self, running: Running, ending: Ending, reason: str = "", checkpoint: str | None = None, adapter: str | None = None
    ) -> Ended:
        """Empties the slot."""
        number = running.spec.number
        self._net.remove(running.slot)
        self._slots.free(running.slot)
        self._scheduler.remove(number)
        del self._running[number]
        return Ended(number, running.outcome(ending, reason, self._setup.worker, checkpoint, adapter))


def _number(value: int | None, name: str) -> int:
    if value is None:
        raise ModelError(f"training.{name} is not resolved; build the setup with probe.resolve_training")
    return value


def _vocabulary(setup: EngineSetup) -> int:
    from sweeper.engine.model import load_config

    return int(load_config(setup.model, setup.trust_remote_code).get_text_config().vocab_size)


def _best(found: Checkpoint | None) -> torch.Tensor | None:
    return found.tensors.get("best") if found is not None else None
