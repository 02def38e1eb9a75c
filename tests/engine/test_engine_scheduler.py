"""Whose turn it is: the scheduler's promises, over random histories, without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.engine.scheduler import Phase, Schedule, Scheduler
from sweeper.engine.slots import Slots

BATCHES = st.dictionaries(st.integers(0, 9), st.lists(st.integers(1, 120), min_size=1, max_size=6), min_size=1, max_size=6)


def drain(scheduler: Scheduler) -> list[Schedule]:
    out = []
    while work := scheduler.schedule():
        out.append(work)
    return out


@settings(max_examples=200, deadline=None)
@given(BATCHES, st.integers(1, 100))
def test_every_chunk_runs_once_in_order_within_the_budget(batches: dict[int, list[int]], budget: int) -> None:
    scheduler = Scheduler(budget)
    for trial, sizes in batches.items():
        scheduler.add(trial)
        scheduler.offer(trial, sizes)
    seen: dict[int, list[int]] = {trial: [] for trial in batches}
    for work in drain(scheduler):
        tokens = sum(batches[trial][index] for trial, index in work.chunks)
        assert tokens <= budget or len(work.chunks) == 1
        for trial, index in work.chunks:
            seen[trial].append(index)
    assert seen == {trial: list(range(len(sizes))) for trial, sizes in batches.items()}
    assert all(scheduler.phase(trial) is Phase.IDLE for trial in batches)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=6), st.integers(1, 60))
def test_nobody_waits_longer_than_all_the_others_take(sizes: list[int], budget: int) -> None:
    scheduler = Scheduler(budget)
    last = dict.fromkeys(range(len(sizes)), 0)
    for trial in last:
        scheduler.add(trial)
    for turn in range(1, 40):
        for trial, size in enumerate(sizes):
            if scheduler.phase(trial) is Phase.IDLE:
                scheduler.offer(trial, [size])
        for trial, _ in scheduler.schedule().chunks:
            last[trial] = turn
        assert all(turn - seen <= len(sizes) for seen in last.values())


def test_evaluation_and_training_take_turns() -> None:
    scheduler = Scheduler(10)
    for trial in (1, 2):
        scheduler.add(trial)
    scheduler.evaluate(1)
    scheduler.offer(2, [10, 10])
    assert [scheduler.schedule() for _ in range(4)] == [
        Schedule(evaluate=1),
        Schedule(chunks=((2, 0),)),
        Schedule(evaluate=1),
        Schedule(chunks=((2, 1),)),
    ]


def test_a_parked_trial_gets_nothing_until_it_is_unparked() -> None:
    scheduler = Scheduler(10)
    scheduler.add(3)
    scheduler.park(3)
    assert not scheduler.schedule()
    scheduler.unpark(3)
    scheduler.offer(3, [4])
    assert scheduler.schedule() == Schedule(chunks=((3, 0),))
    scheduler.remove(3)
    assert scheduler.trials() == []


def test_mistakes_of_the_caller_are_refused() -> None:
    scheduler = Scheduler(10)
    scheduler.add(1)
    with pytest.raises(ValueError, match="already"):
        scheduler.add(1)
    scheduler.offer(1, [5])
    with pytest.raises(ValueError, match="1 are left"):
        scheduler.offer(1, [5])


def test_slots_give_the_lowest_free_one_and_count() -> None:
    slots = Slots(3)
    assert [slots.allocate() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(IndexError):
        slots.allocate()
    slots.free(1)
    assert (slots.available_size(), slots.allocate()) == (1, 1)
    with pytest.raises(ValueError, match="not taken"):
        slots.free(7)


def test_the_scheduler_needs_no_torch() -> None:
    code = "import sys, sweeper.engine.scheduler, sweeper.engine.slots; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
