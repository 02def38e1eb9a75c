"""One sweep on a simulated clock: real scheduler, real pruner, and a Speed in place of an engine.

Each engine has its own clock; the one that is furthest behind does its next piece: it admits trials (the engine with the fewest
first), schedules a pass, and its clock moves on by what the pass costs. A pass stands for `grain` real ones, so that a sweep of a
million steps costs no more than one of a thousand; trials in one engine stay in step as they do in a real one.

    next configuration -> admit -> batches ... -> evaluation -> (rung: stop?) -> batches ... -> complete
    nothing to hand out: a trial leaves an engine with much to do for one that has run dry, as in the executor
    search.time: nothing begins any more;  search.budget: everything stops where it stands

Does not know torch, databases, or where its numbers come from. Cost: about 20 microseconds a pass, so 10 ms a sweep.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from sweeper.engine.scheduler import Scheduler, Work
from sweeper.executors.balance import Left, Load, best_move
from sweeper.records import ParamValue, TrialState
from sweeper.study.budget import Device
from sweeper.study.plan import StudyPlan
from sweeper.sweep.forecast.outlook import Begun, Configurations, Course, History
from sweeper.sweep.forecast.speed import Speed

PASSES = 500
"""Passes that a simulated sweep is made of, roughly: at least one between two evaluations of each trial."""

READS = 4
"""Pieces that an evaluation is cut into, so that neighbours train in between."""


@dataclass(frozen=True)
class World:
    """What all simulated sweeps of one forecast share."""

    plan: StudyPlan
    speed: Speed
    configurations: Configurations
    history: History = field(default_factory=History)
    device: Device = field(default_factory=Device)
    began: bool = False  # engines are up: no start-up to come

    def grain(self) -> float:
        """Real optimizer steps for each simulated one."""
        trials = self.configurations.limit or 50
        steps = trials * self.plan.full / max(1, int(self.plan.defaults.get("batch_size") or 1))
        return max(1.0, steps / PASSES)


@dataclass(frozen=True)
class Simulated:
    """How one simulated sweep went. `states` counts all trials of the study, those ended before included in none of them."""

    seconds: float
    device_seconds: float
    started: int
    states: Mapping[TrialState, int]
    drained: bool


@dataclass
class _Trial:
    number: int
    evaluations: tuple[int, ...]
    rungs: tuple[int, ...]
    batch: int
    budget: int
    fails: float
    at: int = 0  # nominal examples behind it
    steps: int = 0  # simulated ones left before the next evaluation
    weight: float = 1.0  # real steps or rows for each simulated one
    chunks: int = 0  # of its offer, not yet done
    reading: bool = False


@dataclass(eq=False)
class _Engine:
    scheduler: Scheduler
    clock: float
    trials: dict[int, _Trial] = field(default_factory=dict)


def simulate(world: World, chance: random.Random, pace: float = 1.0) -> Simulated:
    """One sweep. `pace` multiplies every duration: how much slower than measured this one is."""
    return _Simulation(world, chance, pace).run()


class _Simulation:
    def __init__(self, world: World, chance: random.Random, pace: float) -> None:
        self._world, self._plan, self._speed = world, world.plan, world.speed
        self._chance, self._pace = chance, pace
        self._grain = world.grain()
        self._course = Course(world.plan, world.history, chance)
        start = 0.0 if world.began else world.speed.start_seconds * chance.uniform(0.8, 1.5) * pace
        self._engines = [_Engine(Scheduler(self._speed.micro_tokens), start) for _ in range(self._speed.engines)]
        self._waiting = list(world.history.begun)
        self._next = world.history.started
        self._states: Counter[TrialState] = Counter()
        self._dry = False  # nothing is left to hand out
        self._busy = 0.0
        self._end = 0.0

    def run(self) -> Simulated:
        active = list(self._engines)
        drained = False
        while active:
            engine = min(active, key=lambda one: one.clock)
            if self._over(engine.clock):
                drained = True
                break
            self._admit(engine)
            if self._dry and len(engine.trials) < self._speed.slots:
                self._balance(active)
            if not engine.trials:
                active.remove(engine)
                continue
            self._piece(engine)
        left = sum(len(engine.trials) for engine in self._engines) + len(self._waiting)
        self._states[TrialState.WAITING] += left
        limit = self._world.configurations.limit
        unfinished = left > 0 or limit is None or self._next < limit
        return Simulated(self._end, self._busy, self._next, dict(self._states), drained and unfinished)

    def _over(self, clock: float) -> bool:
        budget, history, device = self._plan.search.budget, self._world.history, self._world.device
        if budget.time is not None and history.driven + clock >= float(budget.time):
            return True
        hours = (history.device_seconds + self._busy) * device.count / 3600
        if budget.gpu_hours is not None and hours >= budget.gpu_hours:
            return True
        return budget.money is not None and budget.price is not None and hours * budget.price >= budget.money

    def _admit(self, engine: _Engine) -> None:
        while len(engine.trials) < self._speed.slots and self._is_next(engine):
            begun = self._ask(engine.clock)
            if begun is None:
                self._dry = True
                return
            engine.clock += self._speed.turn_seconds * self._pace
            self._end = max(self._end, engine.clock)
            self._enter(engine, begun)

    def _is_next(self, engine: _Engine) -> bool:
        free = [len(other.trials) for other in self._engines if len(other.trials) < self._speed.slots]
        return len(engine.trials) <= min(free)

    def _ask(self, clock: float) -> Begun | None:
        if self._waiting:
            return self._waiting.pop(0)
        limit = self._plan.search.time
        if limit is not None and self._world.history.driven + clock >= float(limit):
            return None
        params = self._world.configurations.at(self._next, self._chance)
        if params is None:
            return None
        self._next += 1
        return Begun(self._next - 1, params)

    def _enter(self, engine: _Engine, begun: Begun) -> None:
        budget = self._plan.budget(begun.params)
        evaluations, rungs = self._plan.clock(budget)
        trial = _Trial(
            number=begun.number,
            evaluations=tuple(nominal for nominal in evaluations if nominal > begun.examples) or (budget,),
            rungs=rungs,
            batch=min(_whole(begun.params.get("batch_size")), budget),
            budget=budget,
            fails=self._course.fails_at(budget),
            at=min(begun.examples, budget),
        )
        engine.trials[trial.number] = trial
        engine.scheduler.add(trial.number)
        self._train(engine, trial)

    def _train(self, engine: _Engine, trial: _Trial) -> None:
        """Batches up to the next evaluation, grouped."""
        real = math.ceil(trial.evaluations[0] / trial.batch) - math.ceil(trial.at / trial.batch)
        trial.steps = math.ceil(real / self._grain)
        trial.weight = real / trial.steps if trial.steps else 0.0
        trial.reading = False
        self._offer(engine, trial)

    def _offer(self, engine: _Engine, trial: _Trial) -> None:
        """The next batch, or the evaluation where none is left."""
        if trial.steps > 0:
            trial.steps -= 1
            trial.chunks = self._speed.chunks(trial.batch)
            size = max(1, round(self._speed.pass_tokens(trial.batch)))
            engine.scheduler.offer(trial.number, [size] * trial.chunks)
            return
        nominal = trial.evaluations[0]
        whole = nominal in trial.rungs or len(trial.evaluations) == 1
        read = self._speed.full_rows if whole else self._speed.between_rows
        trial.chunks = min(READS, max(1, read))
        trial.weight = read / trial.chunks
        trial.reading = True
        engine.scheduler.offer(trial.number, [self._speed.chunk_tokens] * trial.chunks, Work.READ)

    def _balance(self, active: list[_Engine]) -> None:
        """Moves a trial where the executor would: it goes on with the batch or the evaluation that it was at."""
        if self._plan.search.deterministic or len(self._engines) < 2:
            return
        found = best_move([self._load(engine) for engine in self._engines])
        if found is None:
            return
        number, index = found
        source = next(engine for engine in self._engines if number in engine.trials)
        target, trial = self._engines[index], source.trials.pop(number)
        source.scheduler.remove(number)
        target.trials[number] = trial
        target.scheduler.add(number)
        target.clock = max(target.clock, source.clock)
        if target not in active:
            active.append(target)
        trial.steps += not trial.reading
        self._offer(target, trial)

    def _load(self, engine: _Engine) -> Load:
        left = {number: Left(max(0, trial.budget - trial.at), trial.budget) for number, trial in engine.trials.items()}
        return Load(self._speed.slots - len(engine.trials), left)

    def _piece(self, engine: _Engine) -> None:
        """One pass of an engine, and what follows from it."""
        work = engine.scheduler.schedule()
        spent = self._cost(engine, work.chunks, work.work) * self._pace
        engine.clock += spent * self._speed.wait
        self._busy += spent
        self._end = max(self._end, engine.clock)
        for number, chunks in Counter(number for number, _ in work.chunks).items():
            trial = engine.trials[number]
            trial.chunks -= chunks
            if trial.chunks > 0:
                continue
            if trial.reading:
                self._evaluated(engine, trial)
            else:
                self._offer(engine, trial)

    def _cost(self, engine: _Engine, chunks: tuple[tuple[int, int], ...], work: Work) -> float:
        trials = [engine.trials[number] for number, _ in chunks]
        if work is not Work.TRAIN:
            return sum(trial.weight for trial in trials) * self._speed.read_seconds
        sizes = [self._speed.pass_tokens(trial.batch) for trial in trials]
        tokens = sum(sizes)
        weight = sum(trial.weight * size for trial, size in zip(trials, sizes, strict=True)) / tokens
        return self._speed.passes.seconds(tokens) * weight

    def _evaluated(self, engine: _Engine, trial: _Trial) -> None:
        nominal, at_rung = trial.evaluations[0], trial.evaluations[0] in trial.rungs
        trial.at, trial.evaluations = nominal, trial.evaluations[1:]
        if nominal >= trial.fails:
            self._leave(engine, trial, TrialState.FAIL)
        elif not trial.evaluations:
            self._course.completed(trial.number)
            self._leave(engine, trial, TrialState.COMPLETE)
        elif self._course.stops(trial.number, nominal, at_rung):
            self._leave(engine, trial, TrialState.PRUNED)
        else:
            self._train(engine, trial)

    def _leave(self, engine: _Engine, trial: _Trial, state: TrialState) -> None:
        engine.scheduler.remove(trial.number)
        del engine.trials[trial.number]
        self._states[state] += 1


def _whole(value: ParamValue) -> int:
    return max(1, int(value)) if isinstance(value, int | float) else 1
