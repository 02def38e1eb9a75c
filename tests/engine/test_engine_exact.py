"""Random schedules on CPU in fp32 on one thread: whatever its neighbours are or do, a trial has the same bits as alone.

Each configuration is trained once alone in a fresh engine: loss, gradient norm, weights and both Adam moments after every step,
every evaluation with its rows' outcomes, the exported adapter. Then schedules are drawn: which trials, when they join, how many
slots, how many tokens share a pass; trials are stopped, paused and resumed in the same or in another engine, parked while others
go on, turn NaN; passes that trials share fail once they are computed. After every step of every trial its state is compared with
that of the lone run.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweeper.engine.base import Ended
from sweeper.engine.engine import TrialEngine
from sweeper.records import Action, Decision, Ending, Report, ReportKind, TrialSpec
from tests.engine.engine_world import World, trial

CHUNK = 64
NAN: dict[str, float | int | str] = {"learning_rate": 1e4, "clip": 0.0, "warmup": 0.0, "schedule": "constant"}
CONFIGURATIONS: tuple[dict[str, float | int | str], ...] = (
    {"batch_size": 4},
    {"batch_size": 7, "learning_rate": 3e-2, "rank": 2, "targets": "qv", "dropout": 0.2},
    {"batch_size": 1, "learning_rate": 1e-3, "rank": 8, "targets": "mlp", "weight_decay": 0.0, "examples": 12},
    {"batch_size": 3, **NAN},
    {"batch_size": 16, "label_smoothing": 0.1, "rank": 1, "dropout": 0.5},
    {"batch_size": 2, "targets": "attention", "rank": 16, "beta2": 0.99, "examples": 18},
    {"batch_size": 4, "dropout": 0.05, "rank": 4, "alpha": 32.0},
)
FAMILIES = ("llama", "qwen3", "gpt_neox")


@dataclass
class Life:
    """What became of one trial: digests after each optimizer step, evaluations, adapter, ending."""

    steps: dict[int, str] = field(default_factory=dict)
    evaluations: dict[int, str] = field(default_factory=dict)
    ending: Ending | None = None
    reason: str = ""
    adapter: Mapping[str, bytes] = field(default_factory=dict)


@dataclass
class Watcher:
    """Engines with their trials' lives; `slot_of` says which engine a trial is in."""

    world: World
    lives: dict[int, Life] = field(default_factory=dict)
    checkpoints: dict[int, str | None] = field(default_factory=dict)

    def step(self, engine: TrialEngine) -> list[Report]:
        """One piece; notes every optimizer step taken, and returns the rung reports."""
        before = {number: running.progress.steps for number, running in engine._running.items()}
        events = engine.step()
        for number, running in engine._running.items():
            p = running.progress
            if p.steps != before[number]:
                sha = hashlib.sha256(repr((p.interval_loss, p.gradient_norm, p.learning_rate, p.first_loss)).encode())
                for tensor in (running.row.weights, running.row.first, running.row.second, running.row.gradient):
                    sha.update(tensor.numpy().tobytes())
                self.lives[number].steps[p.steps] = sha.hexdigest()
        return self.note(events)

    def note(self, events: list[Report | Ended] | list[Ended]) -> list[Report]:
        """Takes what an engine said; returns the rung reports."""
        rungs: list[Report] = []
        for event in events:
            if isinstance(event, Ended):
                life, outcome = self.lives[event.trial], event.outcome
                life.ending, life.reason = outcome.ending, outcome.reason
                self.checkpoints[event.trial] = outcome.checkpoint
                life.adapter = self.world.depot.get(outcome.adapter) if outcome.adapter else {}
            elif event.kind is not ReportKind.PROGRESS:
                rows = self.world.depot.get(event.outcomes or "")["rows.parquet"]
                said = repr((event.examples, sorted(event.metrics.items()), hashlib.sha256(rows).hexdigest()))
                self.lives[event.trial].evaluations[event.nominal] = said
                rungs += [event] if event.kind is ReportKind.RUNG else []
        return rungs


def spec(number: int, configuration: int) -> TrialSpec:
    changes = {"examples": 24, **CONFIGURATIONS[configuration]}
    rungs = (8,) if configuration % 2 == 0 else ()
    return trial(number, rungs=rungs, every=8, seed=100 + configuration, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Entry:
    """One trial of a schedule. `stop_after` pieces it is stopped, if at all; `at_rung` is the answer it gets."""

    configuration: int
    joins: int
    at_rung: Action
    stop_after: int | None
    elsewhere: bool  # where a paused trial goes on


ENTRIES = st.builds(
    Entry,
    st.integers(0, len(CONFIGURATIONS) - 1),
    st.integers(0, 25),
    st.sampled_from(Action),
    st.none() | st.none() | st.integers(1, 30),
    st.booleans(),
)


@pytest.fixture(scope="module", params=FAMILIES)
def lone(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path]
) -> tuple[World, Callable[[int], Life]]:
    """A world of a family, rows of most of which begin alike, and the life of each configuration alone in a fresh engine."""
    start = () if request.param == "llama" else (7, 9, 40)
    world = World(tmp_path_factory.mktemp("exact"), tiny_folder(request.param), start=start)

    @cache
    def alone(configuration: int) -> Life:
        watcher = Watcher(world, {0: Life()})
        engine = make_engine(world, 1, CHUNK)
        engine.admit(spec(0, configuration))
        while engine.trials():
            for report in watcher.step(engine):
                engine.decide(Decision(report.trial, Action.CONTINUE))
        return watcher.lives[0]

    return world, alone


def make_engine(world: World, slots: int, micro_tokens: int) -> TrialEngine:
    return world.engine(slots=slots, micro_tokens=micro_tokens, training={"chunk_tokens": CHUNK}, full_examples=24)


@settings(
    max_examples=16, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(ENTRIES, min_size=3, max_size=6),
    st.integers(2, 4),
    st.sampled_from([24, CHUNK, 3 * CHUNK, 10 * CHUNK]),
    st.sampled_from([0, 0, 2, 5]),
)
def test_a_trial_has_the_same_bits_as_alone(
    lone: tuple[World, Callable[[int], Life]], entries: list[Entry], slots: int, micro_tokens: int, failing: int
) -> None:
    world, alone = lone
    lives = run_schedule(world, entries, slots, micro_tokens, failing)
    for number, entry in enumerate(entries):
        mine, expected = lives[number], alone(entry.configuration)
        assert mine.steps == {step: expected.steps[step] for step in mine.steps}
        assert mine.evaluations == {nominal: expected.evaluations[nominal] for nominal in mine.evaluations}
        if mine.ending is not Ending.PRUNED:
            assert mine == expected


def fail_shared(engine: TrialEngine, every: int) -> None:
    """Has every so many-th pass that several trials share raise once it is computed, with its gradients added; 0: none."""
    count = itertools.count(1)

    def breaking(compute: Callable[..., Any], slots: Callable[[Any], set[int]]) -> Callable[..., Any]:
        def run(asked: Any, *rest: Any) -> Any:
            out = compute(asked, *rest)
            if every and len(slots(asked)) > 1 and next(count) % every == 0:
                raise RuntimeError("a shared pass failed")
            return out

        return run

    net: Any = engine._net
    net.train = breaking(net.train, lambda chunks: {chunk.slot for chunk in chunks})
    net.score = breaking(net.score, lambda asked: {slot for slot, _ in asked})


def run_schedule(world: World, entries: list[Entry], slots: int, micro_tokens: int, failing: int) -> dict[int, Life]:
    """Two engines that take turns; trials join the first, some paused ones go on in the second."""
    engines = [make_engine(world, slots, micro_tokens), make_engine(world, slots, 2 * CHUNK)]
    for engine in engines:
        fail_shared(engine, failing)
    watcher = Watcher(world, {number: Life() for number in range(len(entries))})
    waiting = [(entry.joins, number, 0, spec(number, entry.configuration)) for number, entry in enumerate(entries)]
    later: list[tuple[int, int, Decision]] = []
    piece = 0
    while waiting or any(engine.trials() for engine in engines):
        for item in sorted(waiting, key=lambda item: item[:2]):
            due, _, at, wanted = item
            if due <= piece and engines[at].available():
                engines[at].admit(wanted)
                waiting.remove(item)
        for at, engine in enumerate(engines):
            for report in watcher.step(engine):
                entry = entries[report.trial]
                watcher.note(engine.decide(Decision(report.trial, entry.at_rung)))
                if entry.at_rung is Action.LATER:
                    later.append((piece + 3, at, Decision(report.trial, Action.CONTINUE)))
                if entry.at_rung is Action.PAUSE:
                    again = replace(spec(report.trial, entry.configuration), resume_from=watcher.checkpoints[report.trial])
                    waiting.append((piece + 2, report.trial, int(entry.elsewhere), again))
            for due, where, decision in [x for x in later if x[1] == at and x[0] <= piece]:
                watcher.note(engine.decide(decision))
                later.remove((due, where, decision))
            for number in engine.trials():
                if (after := entries[number].stop_after) is not None and piece >= entries[number].joins + after:
                    watcher.note(engine.decide(Decision(number, Action.STOP, "steered")))
        piece += 1
    return watcher.lives


def test_the_lone_lives_show_something(lone: tuple[World, Callable[[int], Life]]) -> None:
    _, alone = lone
    endings = [alone(i).ending for i in range(len(CONFIGURATIONS))]
    assert endings.count(Ending.COMPLETED) == len(CONFIGURATIONS) - 1
    assert endings[3] is Ending.FAILED
    assert all(len(alone(i).steps) >= 2 for i in range(len(CONFIGURATIONS)))
    digests = [digest for i in range(len(CONFIGURATIONS)) for digest in alone(i).steps.values()]
    assert len(set(digests)) == len(digests)
