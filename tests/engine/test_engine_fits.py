"""What fits is worked out from a config alone, and agrees with what an engine measures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sweeper.engine.estimate import estimate, what_fits
from sweeper.engine.footprint import measure_pass
from sweeper.engine.lora_net import LoraNet
from sweeper.engine.workload import workload
from sweeper.errors import ModelError
from sweeper.spec.models import TrainingSpec
from tests.engine.engine_world import World, classify_rows, predict_all, write_rows


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.1}, {"gradient_checkpointing": True}], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox"])
def test_a_token_is_estimated_within_a_sixth(make_world: Callable[..., World], family: str, changes: dict[str, object]) -> None:
    world = make_world(family)
    training = world.setup(training={"rank": 4, **changes}).training
    net = LoraNet(world.setup(training={"rank": 4, **changes}))
    work = workload(training, write_rows(world.root / "all", predict_all(classify_rows(48, 1)), "text"), 64)
    found = estimate(world.model, training)
    assert found.token == pytest.approx(measure_pass(net, work)[1], rel=1 / 6)
    assert found.slot == 16 * net.trainable(work.params)
    largest = estimate(world.model, training, rank=32)  # of the space
    assert largest == estimate(world.model, training.model_copy(update={"rank": 32}))
    assert largest.token > found.token


def test_more_memory_holds_more_and_the_sentence_says_so(world: World) -> None:
    training = TrainingSpec()
    base = estimate(world.model, training).base
    none = what_fits(world.model, training, memory=base // 2)
    assert (none.slots, none.longest) == (0, 0)
    assert none.sentence.endswith("has no room for one trial")
    some = what_fits(world.model, training, memory=base + 20_000_000)
    assert 1 <= some.slots <= 16
    assert some.footprint.forecast_bytes(some.slots, some.tokens) <= some.memory
    assert f"and for rows of {some.longest:,} tokens" in some.sentence
    much = what_fits(world.model, training)
    assert much.slots == 16
    assert "16 trials or more" in much.sentence
    assert what_fits(world.model, training, memory=base + 20_000_000, rank=64).slots < some.slots


def test_bf16_and_stored_bases_take_less(world: World) -> None:
    sizes = [
        estimate(world.model, TrainingSpec.model_validate(c)).base
        for c in ({}, {"dtype": "bf16"}, {"base": "int8"}, {"base": "nf4"})
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4


def test_full_fine_tuning_trains_one_at_a_time(world: World) -> None:
    found = what_fits(world.model, TrainingSpec(method="full"))
    assert found.slots == 1
    assert "one trial, and for rows" in found.sentence


def test_a_folder_without_a_config_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        what_fits(tmp_path, TrainingSpec())
