"""Which trial is moved at a sweep's end: the one that leaves the engines most even, and none where little is gained."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sweeper.executors.balance import Left, Load, best_move


def test_an_idle_engine_takes_the_trial_that_evens_the_work() -> None:
    full = Load(1, {4: Left(100, 144), 6: Left(60, 144), 7: Left(50, 144)})
    assert best_move([full, Load(4)]) == (4, 1)
    assert best_move([Load(4), full]) == (4, 0)
    assert best_move([full, Load(2, {5: Left(60, 144)})]) == (6, 1), "moving the largest would make the other the last one"


def test_one_trial_alone_stays_where_it_is() -> None:
    assert best_move([Load(3, {1: Left(100, 144)}), Load(4)]) is None
    assert best_move([Load(3, {1: Left(100, 144)}, staying=100), Load(4)]) == (1, 1), "beside one that may not leave it goes"


def test_a_full_engine_is_no_target_and_the_last_examples_are_not_worth_a_move() -> None:
    heavy = Load(0, {1: Left(100, 144), 2: Left(100, 144)})
    assert best_move([heavy, Load(0, {3: Left(5, 144)})]) is None
    assert best_move([Load(0, {1: Left(8, 144), 2: Left(8, 144)}), Load(4)]) is None
    assert best_move([heavy, Load(1, {3: Left(90, 144)})]) is None, "190 against 200 is not worth it"


@given(st.lists(st.lists(st.integers(0, 400), max_size=5), min_size=2, max_size=4))
def test_moves_come_to_an_end_and_never_make_the_last_engine_later(left: list[list[int]]) -> None:
    numbers = iter(range(100))
    engines = [{next(numbers): Left(examples, 400) for examples in one} for one in left]
    for _ in range(40):
        loads = [Load(5 - len(trials), trials) for trials in engines]
        found = best_move(loads)
        if found is None:
            return
        longest = max(load.examples for load in loads)
        trial, target = found
        source = next(trials for trials in engines if trial in trials)
        engines[target][trial] = source.pop(trial)
        assert len(engines[target]) <= 5
        assert max(sum(t.examples for t in trials.values()) for trials in engines) <= longest
    raise AssertionError("trials were moved for ever")
