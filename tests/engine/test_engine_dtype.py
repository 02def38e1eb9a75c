"""bf16 learns as fp32 does: a trial's small updates do not vanish in roundings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sweeper.engine.agree import Agreement, compare, compared
from sweeper.engine.dtypes import Measured, layer_shapes, measure
from sweeper.engine.frozen import Dense, HalfDense
from sweeper.engine.probe import resolve_training
from sweeper.spec.models import TrainingSpec
from tests.engine.engine_world import VOCAB, World, build_model, drive, trial


def gain(world: World, dtype: str) -> float:
    """By how much four small steps lower the summed loss of 24 validation rows."""
    engine = world.engine(training={"dtype": dtype})
    engine.admit(trial(examples=16, batch_size=4, learning_rate=1e-3, warmup=0.0, schedule="constant"))
    rows = [world.validation.row(i) for i in range(24)]
    before = sum(loss for loss, _ in engine._net.losses([(0, rows)])[0])
    while engine._running[0].progress.steps < 4:
        engine.step()
    return before - sum(loss for loss, _ in engine._net.losses([(0, rows)])[0])


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])
def test_four_small_steps_gain_in_bf16_what_they_gain_in_fp32(make_world: Callable[..., World], family: str) -> None:
    """Stated tolerance: 4 % of the gain."""
    world = make_world(family)
    expected = gain(world, "fp32")
    assert expected > 1
    assert gain(world, "bf16") == pytest.approx(expected, rel=0.04)


def test_a_weight_in_bf16_takes_and_gives_fp32() -> None:
    torch.manual_seed(0)
    weight, bias, x, dy = torch.randn(48, 32), torch.randn(48), torch.randn(20, 32), torch.randn(20, 48)
    full, half = Dense(weight, bias), HalfDense(weight.bfloat16(), bias)
    for mine, exact in ((half.forward(x), full.forward(x)), (half.input_gradient(dy), full.input_gradient(dy))):
        assert mine.dtype == torch.float32
        assert torch.linalg.norm(mine - exact) < 0.01 * torch.linalg.norm(exact)
    assert half.nbytes() == 2 * 48 * 32 + 4 * 48


def test_a_trial_in_bf16_gives_the_same_packed_or_alone(world: World) -> None:
    setting = {"dtype": "bf16", "chunk_tokens": 96}
    trials = [trial(0, seed=1, batch_size=4), trial(1, seed=2, batch_size=7, rank=2, targets="qv", dropout=0.2)]
    packed = drive(world.engine(slots=2, training=setting), trials)
    for spec in trials:
        alone = drive(world.engine(training=setting), [spec])
        for (_, _, mine), (_, _, other) in zip(packed.values(spec.number), alone.values(spec.number), strict=True):
            assert mine == pytest.approx(other, rel=0.01)


def test_dtype_is_measured_on_the_shapes_of_one_layer() -> None:
    shapes = layer_shapes(build_model("llama"))
    assert shapes == {(64, 64): 2, (32, 64): 2, (96, 64): 2, (64, 96): 1}
    assert layer_shapes(build_model("gpt2")) == {(192, 64): 1, (64, 64): 1, (256, 64): 1, (64, 256): 1}
    once, thrice = (measure(type(shapes)({(512, 512): count})) for count in (1, 3))
    assert thrice.fp32 > 1.5 * once.fp32 > 0
    assert thrice.bf16 > 1.5 * once.bf16 > 0


def test_bf16_is_taken_where_it_is_worth_it() -> None:
    assert Measured(fp32=0.0131, bf16=0.010).dtype == "bf16"
    assert Measured(fp32=0.0129, bf16=0.010).dtype == "fp32"
    assert "took 10 ms in bf16 and 13 ms in fp32, 1.30 times as long" in str(Measured(0.013, 0.010))


def test_losses_of_both_dtypes_are_compared_on_the_studys_rows(world: World) -> None:
    training = world.setup(training={"learning_rate": 1e-3, "dropout": 0.1}).training
    found = compare(training, world.model, world.train)
    assert len(found.fp32) == len(found.bf16) == 4
    assert found.fp32 != found.bf16
    assert found.worst < 0.05
    assert compare(training, world.model, vocabulary=VOCAB).worst < 0.05  # before there are rows


def test_losses_are_compared_once_a_node_and_configuration(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path))
    made: list[TrainingSpec] = []

    def counted(training: TrainingSpec, *_: object) -> Agreement:
        made.append(training)
        return Agreement((3.0, 2.9, 2.8, 2.7), (3.0, 2.9, 2.8, float("nan")))

    monkeypatch.setattr("sweeper.engine.agree.compare", counted)
    training = world.setup().training
    first, second = (compared(training, world.model, world.train) for _ in range(2))
    assert str(first) == str(second)
    assert not second.agrees
    assert made == [training]
    compared(training.model_copy(update={"rank": training.rank + 1}), world.model, world.train)
    assert len(made) == 2
    file = next((tmp_path / "agreements").glob("*.json"))
    file.write_text("{}")
    for rank in (training.rank, training.rank + 1):
        compared(training.model_copy(update={"rank": rank}), world.model, world.train)
    assert len(made) == 3, "a file that is none is made anew"


def test_bf16_is_left_where_its_losses_differ() -> None:
    assert Agreement((2.0, 1.0), (2.02, 0.99)).agrees
    said = "the losses of 2 steps differ by 1.00%, each by 1.00% at most: within 2% in all and 4% for each"
    assert str(Agreement((2.0, 1.0), (2.02, 0.99))) == said
    assert Agreement((2.0, 1.0), (2.0, 0.97)).agrees, "one step beyond 2% by rounding"
    assert not Agreement((2.0, 1.0), (2.0, 0.95)).agrees, "one step too far"
    assert not Agreement((2.0, 1.0), (2.07, 1.03)).agrees, "all steps somewhat too far"
    assert not Agreement((2.0, 1.0), (2.0, float("nan"))).agrees


def test_auto_says_what_was_measured_and_takes_fp32_where_losses_differ(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    for ratio, bf16, dtype in ((2.0, (3.0, 2.9), "bf16"), (2.0, (3.0, 2.5), "fp32"), (1.1, (3.0, 2.9), "fp32")):
        monkeypatch.setattr("sweeper.engine.probe.measure", lambda *_, ratio=ratio: Measured(ratio, 1.0))
        monkeypatch.setattr("sweeper.engine.probe.compared", lambda *_, bf16=bf16: Agreement((3.0, 2.9), bf16))
        chosen = resolve_training(TrainingSpec(), world.model, notice=said.append, data=world.root / "train")
        assert chosen.dtype == dtype
    assert "2.00 times as long" in said[0]
    assert "differ by 0.00%, each by 0.00% at most: within 2%" in said[0]
    assert "not within 2%" in said[1]
    assert "losses" not in said[2]
