"""Whose turn it is: the scheduler's promises, over random histories, without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sweeper.engine.scheduler import Phase, Schedule, Scheduler, Work
from sweeper.engine.slots import Slots

BATCHES = st.dictionaries(st.integers(0, 9), st.lists(st.integers(1, 120), min_size=1, max_size=6), min_size=1, max_size=6)
CHUNKS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 5)), min_size=1, max_size=5)  # tokens, rows


def drain(scheduler: Scheduler) -> list[Schedule]:
    out = []
    while work := scheduler.schedule():
        out.append(work)
    return out


@settings(max_examples=100, deadline=None, derandomize=True)
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
    assert all(scheduler.phase(trial) is Phase.WAITING for trial in batches)


class Histories(RuleBasedStateMachine):
    """Any order of joining, leaving, offering, parking, withdrawing and halving: the promises hold after every piece."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.rows = 64, 6
        self.scheduler = Scheduler(self.tokens, self.rows)
        self.left: dict[int, tuple[Work, dict[int, tuple[int, int]]]] = {}  # by trial: chunks offered and not yet seen
        self.parked: set[int] = set()
        self.waited: dict[int, int] = {}

    @rule(trial=st.integers(0, 7))
    def join_or_leave(self, trial: int) -> None:
        if trial in self.scheduler.trials():
            self.scheduler.remove(trial)
            self.left.pop(trial, None)
            self.parked.discard(trial)
        else:
            self.scheduler.add(trial)

    @rule(chunks=CHUNKS, work=st.sampled_from(Work), pick=st.integers(0, 7))
    def offer(self, chunks: list[tuple[int, int]], work: Work, pick: int) -> None:
        waiting = [t for t in self.scheduler.trials() if self.scheduler.phase(t) is Phase.WAITING]
        if waiting:
            trial = waiting[pick % len(waiting)]
            self.scheduler.offer(trial, [tokens for tokens, _ in chunks], work, [rows for _, rows in chunks])
            self.left[trial] = (work, dict(enumerate(chunks)))
            self.waited[trial] = 0

    @rule(pick=st.integers(0, 7))
    def park_or_unpark(self, pick: int) -> None:
        if trials := self.scheduler.trials():
            trial = trials[pick % len(trials)]
            if trial in self.parked:
                self.scheduler.unpark(trial)
                self.parked.discard(trial)
            else:
                self.scheduler.park(trial)
                self.parked.add(trial)
            self.left.pop(trial, None)

    @rule(pick=st.integers(0, 7))
    @precondition(lambda self: self.left)
    def withdraw(self, pick: int) -> None:
        trial = sorted(self.left)[pick % len(self.left)]
        self.scheduler.withdraw(trial)
        del self.left[trial]

    @rule()
    def halve(self) -> None:
        self.scheduler.halve()
        self.tokens, self.rows = max(1, self.tokens // 2), max(1, self.rows // 2)

    @rule()
    def piece(self) -> None:
        piece = self.scheduler.schedule()
        assert bool(piece) == bool(self.left)
        served = [(trial, place, *self.left[trial][1][place]) for trial, place in piece.chunks]
        assert len(served) == 1 or sum(c[2] for c in served) <= self.tokens
        assert len(served) == 1 or sum(c[3] for c in served) <= self.rows
        for trial, place, *_ in served:
            work, chunks = self.left[trial]
            assert trial not in self.parked
            assert work is piece.work
            assert place == min(chunks)
            del chunks[place]
            if not chunks:
                del self.left[trial]
        for trial in self.left:
            self.waited[trial] = 0 if trial in piece.trials() else self.waited[trial] + 1

    @invariant()
    def nobody_waits_for_more_pieces_than_there_may_be_others(self) -> None:
        assert all(self.waited[trial] <= 7 for trial in self.left)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=100, stateful_step_count=40, deadline=None, derandomize=True)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 60), min_size=2, max_size=6),
    st.integers(1, 60),
    st.lists(st.sampled_from(Work), min_size=6, max_size=6),
)
def test_nobody_waits_for_more_pieces_than_there_are_others(sizes: list[int], budget: int, works: list[Work]) -> None:
    scheduler = Scheduler(budget)
    waited = dict.fromkeys(range(len(sizes)), 0)
    for trial in waited:
        scheduler.add(trial)
    for _ in range(40):
        for trial, size in enumerate(sizes):
            if scheduler.phase(trial) is Phase.WAITING:
                scheduler.offer(trial, [size], works[trial])
        served = scheduler.schedule().trials()
        waited = {trial: 0 if trial in served else pieces + 1 for trial, pieces in waited.items()}
        assert max(waited.values()) < len(sizes)


def test_evaluation_and_training_take_turns() -> None:
    scheduler = Scheduler(10)
    for trial in (1, 2):
        scheduler.add(trial)
    scheduler.offer(1, [10, 10], Work.READ)
    scheduler.offer(2, [10, 10])
    assert drain(scheduler) == [
        Schedule(((1, 0),), Work.READ),
        Schedule(((2, 0),)),
        Schedule(((1, 1),), Work.READ),
        Schedule(((2, 1),)),
    ]


def test_work_of_one_kind_shares_a_piece_whatever_lies_between() -> None:
    scheduler = Scheduler(10)
    for trial, work in enumerate((Work.READ, Work.TRAIN, Work.READ, Work.DECODE, Work.READ)):
        scheduler.add(trial)
        scheduler.offer(trial, [4], work)
    assert [piece.trials() for piece in drain(scheduler)] == [[0, 2], [1], [3], [4]]


def test_a_row_budget_bounds_rows_and_one_chunk_may_exceed_it() -> None:
    scheduler = Scheduler(100, row_budget=4)
    for trial, rows in enumerate((9, 2, 2, 1)):
        scheduler.add(trial)
        scheduler.offer(trial, [5], rows=[rows])
    assert [piece.trials() for piece in drain(scheduler)] == [[0], [1, 2], [3]]


def test_a_trial_s_own_chunks_share_a_piece_in_turn_with_others() -> None:
    scheduler = Scheduler(10)
    for trial in (1, 2):
        scheduler.add(trial)
        scheduler.offer(trial, [2, 2, 2])
    assert scheduler.schedule().chunks == ((1, 0), (2, 0), (1, 1), (2, 1), (1, 2))


def test_a_secluded_trial_shares_no_piece_until_its_offer_is_done() -> None:
    scheduler = Scheduler(10)
    for trial in (1, 2, 3):
        scheduler.add(trial)
        scheduler.offer(trial, [4, 4, 4])
    scheduler.seclude(2)
    assert [piece.chunks for piece in drain(scheduler)] == [
        ((1, 0), (3, 0)),
        ((2, 0), (2, 1)),
        ((1, 1), (3, 1)),
        ((2, 2),),
        ((1, 2), (3, 2)),
    ]
    for trial in (1, 2):
        scheduler.offer(trial, [4])
    assert scheduler.schedule().trials() == [2, 1]
    scheduler.offer(1, [4])
    scheduler.seclude(1)
    scheduler.withdraw(1)
    for trial in (1, 2):
        scheduler.offer(trial, [4])
    assert len(scheduler.schedule().trials()) == 2
    scheduler.seclude(1)  # it has nothing that could be alone
    for trial in (1, 2):
        scheduler.offer(trial, [4])
    assert len(scheduler.schedule().trials()) == 2


def test_parking_takes_back_what_was_offered() -> None:
    scheduler = Scheduler(10)
    scheduler.add(1)
    scheduler.offer(1, [10, 10])
    scheduler.park(1)
    assert not scheduler.schedule()
    scheduler.unpark(1)
    assert scheduler.phase(1) is Phase.WAITING


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
    with pytest.raises(ValueError, match="must be >= 1"):
        Scheduler(10, row_budget=0)
    with pytest.raises(ValueError, match="already"):
        scheduler.add(1)
    scheduler.offer(1, [5])
    with pytest.raises(ValueError, match="1 chunks left and offers 1"):
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
