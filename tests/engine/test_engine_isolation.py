"""Trials in several slots: each gives the same bits as alone (CPU, fp32, one thread), whatever its neighbours are or do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sweeper.records import Action, Ending, Report
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
