"""A pass that fails costs the trial whose fault it is, and no other: the rest go on with the numbers they have alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sweeper.data.tokens import TokenSet
from sweeper.engine.batch import Batches
from sweeper.engine.packed import LabelIds, Prompts
from sweeper.errors import DataError
from sweeper.records import Ending, TrialSpec
from tests.engine.engine_world import VOCAB, Story, World, drive, trial, write_rows

BAD = 17


def poisoned(world: World) -> None:
    """World's training rows, of which row BAD has a token that the model does not know: reading it raises IndexError."""
    rows = [world.train.row(i) for i in range(len(world.train))]
    rows[BAD] = replace(rows[BAD], ids=np.append(np.int32(VOCAB + 3), rows[BAD].ids[1:]).astype(np.int32))
    write_rows(world.root / "poisoned", rows, world.task)


def step_of_bad_row(world: World, spec: TrialSpec) -> int | None:
    """Steps that the trial takes before it reads row BAD."""
    size = int(spec.params["batch_size"] or 0)
    batches = Batches(world.train, spec.seed, size, spec.examples, 64)
    return next((i for i, seen in enumerate(range(0, spec.examples, size)) if BAD in batches.at(seen).rows), None)


def same(world: World, story: Story, alone: Story, number: int) -> None:
    assert story.ends[number].ending is Ending.COMPLETED
    assert story.values(number) == alone.values(number)
    adapters = [world.depot.get(one.ends[number].adapter or "") for one in (story, alone)]
    assert adapters[0] == adapters[1]


@pytest.mark.parametrize("chunk_tokens", [64, 512])
def test_only_the_trial_that_fails_alone_is_lost(world: World, chunk_tokens: int) -> None:
    poisoned(world)
    # Rows are drawn by seed: two trials never read the bad one within their budgets, one does in the midst of its.
    made = [trial(i, seed=i, examples=24, batch_size=5, dropout=0.1, rungs=(10,)) for i in range(60)]
    healthy = [spec for spec in made if step_of_bad_row(world, spec) is None][:3]
    ill = next(spec for spec in made if step_of_bad_row(world, spec) in (2, 3))
    # With tokens of a pass given, an engine does not train on a sample of the rows at its start.
    changes: dict[str, Any] = {
        "train": world.root / "poisoned",
        "training": {"chunk_tokens": chunk_tokens},
        "micro_tokens": 2000,
        "full_examples": 24,
    }
    alone = {spec.number: drive(world.engine(**changes), [spec]) for spec in healthy}
    engine = world.engine(slots=4, **changes)
    story = drive(engine, [healthy[0], ill, *healthy[1:]])
    assert story.ends[ill.number].ending is Ending.FAILED
    assert "IndexError" in story.ends[ill.number].reason
    assert story.ends[ill.number].examples == 5 * (step_of_bad_row(world, ill) or 0)
    for spec in healthy:
        same(world, story, alone[spec.number], spec.number)
    assert engine.available() == 4


def test_trials_go_on_together_afterwards(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure of a moment costs nobody anything: what was half done is done again, then passes are shared as before."""
    specs = [trial(i, seed=i, batch_size=6, dropout=0.1) for i in range(3)]
    alone = [drive(world.engine(), [spec]) for spec in specs]
    engine = world.engine(slots=3, micro_tokens=500)
    whole, shared = engine._net.train, [0]

    def train(chunks: Any) -> list[float]:
        losses = whole(chunks)  # gradients of the failed pass are there already
        together = len({chunk.slot for chunk in chunks})
        shared.append(together)
        if len(shared) in (4, 9):
            raise RuntimeError("a moment's failure")
        return losses

    monkeypatch.setattr(engine._net, "train", train)
    story = drive(engine, specs)
    for spec in specs:
        same(world, story, alone[spec.number], spec.number)
    assert shared[:9] == [0, 3, 3, 3, 1, 1, 1, 3, 3]
    assert set(shared[12:]) == {3}


def test_an_evaluation_that_one_trial_breaks_is_read_by_each_alone(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world("llama")
    specs = [trial(i, seed=i) for i in range(3)]
    alone = [drive(world.engine(), [spec]) for spec in specs]
    engine = world.engine(slots=3, micro_tokens=500)
    whole = engine._net.score

    def score(asked: Sequence[tuple[int, Prompts]], labels: LabelIds) -> Any:
        ill = engine._running.get(1)
        if ill is not None and ill.progress.examples == 48 and any(slot == ill.slot for slot, _ in asked):
            raise RuntimeError("this trial's weights cannot be read")
        return whole(asked, labels)

    monkeypatch.setattr(engine._net, "score", score)
    story = drive(engine, specs)
    assert (story.ends[1].ending, story.ends[1].examples) == (Ending.FAILED, 48)
    assert "this trial's weights cannot be read" in story.ends[1].reason
    for number in (0, 2):
        same(world, story, alone[number], number)


def test_what_is_no_trials_fault_ends_the_engine_and_no_trial(world: World) -> None:
    rows = [world.validation.row(i) for i in range(len(world.validation))]
    rows[3] = replace(rows[3], label=(rows[3].label + 1) % 3)
    write_rows(world.root / "wrong", rows, world.task)
    engine = world.engine(slots=2, validation=TokenSet(world.root / "wrong").folder)
    for number in range(2):
        engine.admit(trial(number, seed=number))
    with pytest.raises(DataError, match="validation row 3 does not end with the tokens of its label"):
        drive(engine, [])
    assert engine.trials() == [0, 1]
