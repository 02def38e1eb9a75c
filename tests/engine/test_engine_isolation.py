"""Trials in several slots: each gives the same bits as alone (CPU, fp32, one thread), whatever its neighbours are or do."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from sweeper.engine.base import Ended, Event
from sweeper.records import Action, Decision, Ending, Report, ReportKind
from tests.engine.engine_world import World, drive, trial

TRIALS = [
    trial(0, seed=1, batch_size=4, learning_rate=1e-2),
    trial(1, seed=2, batch_size=7, learning_rate=3e-2, rank=2, targets="qv", dropout=0.2),
    trial(2, seed=3, batch_size=1, learning_rate=1e-3, rank=8, targets="mlp", weight_decay=0.0, examples=32),
    trial(3, seed=4, batch_size=3, learning_rate=1e4, clip=0.0, warmup=0.0, schedule="constant"),  # turns NaN
    trial(4, seed=5, batch_size=16, label_smoothing=0.1, rank=3),
]


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_packed_equals_alone(make_world: Callable[..., World], family: str) -> None:
    world = make_world(family)
    packed = drive(world.engine(slots=3, training={"chunk_tokens": 96}), TRIALS)
    for spec in TRIALS:
        alone = drive(world.engine(training={"chunk_tokens": 96}), [spec])
        assert packed.values(spec.number) == alone.values(spec.number)
        assert packed.ends[spec.number].ending is alone.ends[spec.number].ending
    assert packed.ends[3].ending is Ending.FAILED


def test_a_stopped_neighbour_leaks_nothing_into_the_next_trial_of_its_slot(world: World) -> None:
    def stop_first(report: Report) -> Action:
        return Action.STOP if report.trial == 0 else Action.CONTINUE

    engine = world.engine(slots=2)
    story = drive(engine, [trial(0, seed=1), trial(1, seed=2), trial(2, seed=3, rank=2)], stop_first)
    assert story.ends[0].ending is Ending.PRUNED
    for number, seed, rank in ((1, 2, 4), (2, 3, 2)):
        alone = drive(world.engine(), [trial(number, seed=seed, rank=rank)])
        assert story.values(number) == alone.values(number)


def test_a_parked_trial_does_not_stop_its_neighbour(world: World) -> None:
    engine = world.engine(slots=2)
    story = drive(
        engine,
        [trial(0, rungs=(16,)), trial(1, seed=9)],
        lambda report: Action.LATER if report.trial == 0 else Action.CONTINUE,
        until=lambda s: 1 in s.ends,
    )
    assert story.ends[1].ending is Ending.COMPLETED
    assert engine.trials() == [0]


def test_decoding_together_gives_the_same_answers_as_alone(make_world: Callable[..., World]) -> None:
    world = make_world("llama", "instruct")
    changes = {"metrics": ("exact_match", "rouge_l"), "objective": "rouge_l", "maximize": True, "micro_tokens": 2000}
    specs = [trial(i, seed=i, rank=2 + i, dropout=0.1 * i, examples=32) for i in range(3)]
    engine = world.engine(slots=3, **changes)
    together: list[int] = []
    whole = engine._net.decode

    def watched(asked, *rest):  # type: ignore[no-untyped-def]
        together.append(len({slot for slot, _ in asked}))
        return whole(asked, *rest)

    engine._net.decode = watched  # type: ignore[method-assign]
    packed = drive(engine, specs)
    assert max(together) == 3
    for spec in specs:
        assert packed.values(spec.number) == drive(world.engine(**changes), [spec]).values(spec.number)


def test_answers_of_several_slots_are_those_of_each_alone(world: World) -> None:
    engine = world.engine(slots=2)
    for number in (0, 1):
        engine.admit(trial(number, seed=number))
    for _ in range(9):
        engine.step()
    net, labels = engine._net, [(10, 2), (10, 11, 2), (12, 2)]
    rows = [world.validation.row(i) for i in range(9)]
    prompts = [row.ids[: row.prompt] for row in rows]
    mix = [(0, slice(0, 4)), (1, slice(0, 9)), (0, slice(4, 5)), (1, slice(3, 4))]
    assert net.losses([(s, rows[w]) for s, w in mix]) == [net.losses([(s, rows[w])])[0] for s, w in mix]
    assert net.decode([(s, prompts[w]) for s, w in mix], 6, 2) == [net.decode([(s, prompts[w])], 6, 2)[0] for s, w in mix]
    for (s, w), scores in zip(mix, net.score([(s, prompts[w]) for s, w in mix], labels), strict=True):
        np.testing.assert_array_equal(scores, net.score([(s, prompts[w])], labels)[0])


def timeless(event: Event) -> Event:
    """The event without what a clock may change: times, and the name of a checkpoint between rungs."""
    if isinstance(event, Ended):
        return Ended(event.trial, replace(event.outcome, train_seconds=0.0, evaluate_seconds=0.0))
    name = event.checkpoint if event.kind is ReportKind.RUNG else None
    return replace(event, time_ms=0, train_seconds=0.0, evaluate_seconds=0.0, checkpoint=name)


def test_a_deterministic_engine_says_the_same_whatever_the_clock(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def history(tick: float, seconds: float) -> tuple[list[Event], set[str]]:
        clock = itertools.count(0.0, tick)
        monkeypatch.setattr("sweeper.engine.engine.time.monotonic", lambda: next(clock))
        engine = world.engine(slots=2, micro_tokens=128, deterministic=True, checkpoint_seconds=seconds)
        said: list[Event] = []
        for number in (0, 1):
            engine.admit(trial(number, seed=number, batch_size=2 + number, rungs=(32,)))
        while engine.trials():
            events = engine.step()
            said += events
            for event in events:
                if isinstance(event, Report) and event.kind is ReportKind.RUNG:
                    said += engine.decide(Decision(event.trial, Action.CONTINUE))
        return [timeless(event) for event in said], {e.checkpoint for e in said if isinstance(e, Report) and e.checkpoint}

    (slow, few), (fast, many) = history(0.0001, 1e9), history(5.0, 20.0)
    assert slow == fast
    assert len(many) > len(few), "no checkpoint was written by the clock, so this shows nothing"
    assert sum(isinstance(e, Report) and e.kind is ReportKind.PROGRESS for e in slow) > 4


def test_the_setup_says_how_many_trials_and_tokens_share_a_pass(world: World) -> None:
    found = world.engine(slots=3, micro_tokens=500).capacity()
    assert (found.slots, found.micro_tokens) == (3, 500)
    assert world.engine(slots=2).capacity().micro_tokens == 64
    whole = world.engine(slots=0, training={"method": "full"}).capacity()
    assert (whole.slots, "for itself" in whole.reason) == (1, True)


@pytest.mark.parametrize(("micro_tokens", "most"), [(None, 64), (200, 200)])
def test_a_pass_has_as_many_trials_as_its_tokens_allow(world: World, micro_tokens: int | None, most: int) -> None:
    engine = world.engine(slots=4, micro_tokens=micro_tokens)
    passes: list[tuple[int, int]] = []
    whole = engine._net.train

    def watched(chunks):  # type: ignore[no-untyped-def]
        passes.append((len({c.slot for c in chunks}), sum(len(row.ids) for c in chunks for row in c.rows)))
        return whole(chunks)

    engine._net.train = watched  # type: ignore[method-assign]
    drive(engine, [trial(i, seed=i, batch_size=2, examples=16) for i in range(4)])
    assert max(tokens for _, tokens in passes) <= most
    assert max(trials for trials, _ in passes) == (4 if most == 200 else 2 if most == 64 else 0)
