"""How many trials share a model: from curves whose answer is known, and by a real engine that finds out for itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sweeper.data.tokens import TokenRow
from sweeper.engine.capacity import choose, plan_capacity, refuse_too_long
from sweeper.engine.curve import Curve
from sweeper.engine.engine import TrialEngine
from sweeper.engine.footprint import Footprint, measure_footprint
from sweeper.engine.lora_net import LoraNet
from sweeper.engine.room import free_bytes
from sweeper.engine.workload import Workload, workload
from sweeper.errors import DataError, ModelError
from tests.engine.engine_world import World, drive, trial

MUCH = 1 << 40
LIGHT = Footprint(base=1000, slot=100, fixed=0.0, token=1.0, target=0.0, density=0.1)


def curve(knee: int, most: int = 4096) -> Curve:
    """Passes take as long as `knee` tokens' up to there, and in proportion beyond."""
    return Curve(tuple((size, max(size, knee) / 1000) for size in (16 << i for i in range(20)) if size <= most))


@pytest.fixture
def work(world: World) -> Workload:
    """A trial with 64 tokens a step."""
    found = workload(world.setup().training, world.train, 64)
    return replace(found, rows=tuple(TokenRow(row.ids[:8], row.target[:8], 7, row.label) for row in found.rows))


def test_as_many_trials_as_fill_the_knee_and_not_one_more(work: Workload) -> None:
    assert work.step_tokens == 64
    found = choose(curve(512), LIGHT, MUCH, work)
    assert found.slots == 8
    assert found.gain == pytest.approx(8, rel=0.05)
    assert 512 <= found.micro_tokens <= 640
    assert "passes of 512 tokens train 1,000 tokens a second, a trial alone with 64 a pass 125: 8.00 times" in found.reason


def test_a_trial_that_fills_the_device_stays_alone(work: Workload) -> None:
    found = choose(curve(64), LIGHT, MUCH, work)
    assert (found.slots, found.gain) == (1, 1.0)
    assert "one trial's 64 tokens fill a pass on this device (its knee is at 64)" in found.reason
    assert "several together would train 0% faster" in found.reason


def test_packing_that_would_be_slower_is_left(work: Workload) -> None:
    worse = Curve(((16, 0.016), (64, 0.064), (128, 0.14), (1024, 1.5)))
    assert choose(worse, LIGHT, MUCH, work).slots == 1
    little = Curve(((64, 0.064), (128, 0.1225), (1024, 0.98)))  # 4.5 % together
    assert choose(little, LIGHT, MUCH, work).slots == 1


def test_never_more_trials_than_the_search_should_have_in_training(work: Workload) -> None:
    found = choose(curve(1 << 16, most=1 << 17), LIGHT, MUCH, work)
    assert found.slots == 16
    assert "more than 16 would tell the search too little" in found.reason
    assert choose(curve(1 << 16, most=1 << 17), LIGHT, MUCH, work, most=4).slots == 4


def test_memory_bounds_trials_and_tokens_alike(work: Workload) -> None:
    memory = LIGHT.forecast_bytes(3, 3 * 64)
    found = choose(curve(512), LIGHT, memory, work)
    assert found.slots == 3
    assert found.micro_tokens == 3 * 64
    assert "has room for 3, each 0 MB" in found.reason
    tight = choose(curve(512), LIGHT, LIGHT.forecast_bytes(1, 64), work)
    assert tight.slots == 1
    assert "room for one trial" in tight.reason


def test_tokens_that_were_given_are_kept(work: Workload) -> None:
    assert choose(curve(512), LIGHT, MUCH, work, micro_tokens=77).micro_tokens == 77


def test_what_does_not_fit_is_refused_with_its_length_and_what_would() -> None:
    refuse_too_long(LIGHT, LIGHT.forecast_bytes(1, 500), 500)
    with pytest.raises(
        DataError, match=r"a row of 501 tokens does not fit.* enough for 500 tokens; set training.max_length to 500"
    ):
        refuse_too_long(LIGHT, LIGHT.forecast_bytes(1, 500), 501)
    with pytest.raises(ModelError, match="the model and one trial take"):
        refuse_too_long(LIGHT, 900, 10)


def test_an_engine_without_slots_finds_its_own(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    engine = world.engine(slots=0, training={"batch_size": 2})
    found = engine.capacity()
    assert 1 <= found.slots <= 16
    assert engine.available() == found.slots
    assert found.micro_tokens >= world.train.info.longest
    assert found.reason
    spec = trial(0, examples=16)
    together = drive(engine, [spec, *(trial(i, examples=16, seed=i) for i in range(1, found.slots))])
    alone = drive(world.engine(training={"batch_size": 2}), [spec])
    assert together.values(0) == alone.values(0)


def test_an_engine_is_refused_the_row_that_its_memory_has_no_room_for(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sweeper.engine.footprint.base_bytes", lambda net: 5_000_000)  # a process of many tests takes what it takes
    net = LoraNet(world.setup())
    found = measure_footprint(world.setup(), net, workload(world.setup().training, world.train, 64))
    longest = max(world.train.info.longest, world.validation.info.longest)
    with pytest.raises(DataError, match=rf"a row of {longest} tokens does not fit into memory"):
        plan_capacity(world.setup(slots=0, memory=found.forecast_bytes(1, longest // 2)), net, world.train, world.validation)
    with pytest.raises(ModelError, match=r"an engine may take\s+1 MB here"):
        TrialEngine(world.setup(slots=0, memory=1_000_000), world.depot)
    # The same with slots given, where no throughput is measured; but not for an engine that follows a killed one.
    short = {"slots": 2, "memory": found.forecast_bytes(1, longest - 1)}
    for fixed in ({}, {"deterministic": True, "micro_tokens": 64}):
        with pytest.raises(DataError, match=rf"a row of {longest} tokens does not fit into memory"):
            world.engine(**short, **fixed)
        assert world.engine(slots=2, memory=found.forecast_bytes(1, longest), **fixed).available() == 2
    assert world.engine(**short, micro_tokens=64).available() == 2
    assert world.engine(slots=1, memory=1_000_000, training={"method": "full"}).available() == 1


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_there_is_some_room_here(device: str) -> None:
    assert 1 << 20 < free_bytes(device) < 1 << 50
