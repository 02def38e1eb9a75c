"""`layers: last N`: adapters on the last layers only, whose frozen layers below are run once a row and give the same bits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sweeper.engine.engine import TrialEngine
from sweeper.engine.prefix import Prefix, cache_folder, fingerprint
from sweeper.engine.probe import resolve_training
from sweeper.errors import ModelError
from sweeper.records import Ending, TrialSpec
from sweeper.spec.models import EvaluateSpec, TrainingSpec
from tests.engine.engine_world import Story, World, drive, trial
from tests.engine.test_engine_against_peft import padded_loss

LAST = {"layers": "last 1", "chunk_tokens": 96}
TRIALS = [
    trial(0, seed=1, batch_size=4, dropout=0.2, examples=32),
    trial(1, seed=2, batch_size=7, learning_rate=3e-2, rank=2, targets="qv", examples=35),
    trial(2, seed=3, batch_size=1, learning_rate=1e-3, rank=8, targets="mlp", examples=8),
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))


def packed(engine: TrialEngine) -> Any:
    net: Any = engine._net
    return net._packed


def traced(engine: TrialEngine, trials: list[TrialSpec]) -> tuple[Story, dict[int, list[dict[str, torch.Tensor]]]]:
    """The story, and each trial's weights and moments after every piece of work."""
    states: dict[int, list[dict[str, torch.Tensor]]] = {t.number: [] for t in trials}
    step = engine.step

    def watched() -> Any:
        events = step()
        for number, running in engine._running.items():
            states[number].append({name: tensor.clone() for name, tensor in running.row.state().items()})
        return events

    engine.step = watched  # type: ignore[method-assign]
    return drive(engine, trials), states


def assert_same(one: tuple[Story, Any], other: tuple[Story, Any]) -> None:
    for spec in TRIALS:
        assert one[0].ends[spec.number].ending is Ending.COMPLETED
        assert one[0].values(spec.number) == other[0].values(spec.number)
        assert len(one[1][spec.number]) == len(other[1][spec.number]) > 4
        for mine, theirs in zip(one[1][spec.number], other[1][spec.number], strict=True):
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def without_cache(engine: TrialEngine) -> TrialEngine:
    """Every layer in every pass, as without a prefix."""
    packed(engine).prefix = None
    return engine


@pytest.mark.parametrize(
    ("family", "task"), [("llama", "classify"), ("qwen3", "classify"), ("gpt_neox", "classify"), ("llama", "instruct")]
)
def test_what_is_read_gives_the_bits_of_what_is_computed(make_world: Callable[..., World], family: str, task: str) -> None:
    """Losses, weights and moments of every step: computed in the pass, computed once, and all read from another engine's cache."""
    world = make_world(family, task)
    setup: dict[str, Any] = {"slots": 2, "training": LAST}
    if task == "instruct":  # decoding runs every layer
        setup |= {"metrics": ("exact_match",), "evaluate": EvaluateSpec(every=32, rows=4, share=0.1, max_new_tokens=4)}
    plain = traced(without_cache(world.engine(**setup)), TRIALS)
    engine = world.engine(**setup)
    assert_same(traced(engine, TRIALS), plain)

    later = world.engine(**setup)
    prefix: Prefix = packed(later).prefix
    ran: list[int] = []
    prefix._run = lambda layout: ran.append(len(layout.ids))  # type: ignore[assignment, method-assign, return-value, func-returns-value]
    assert_same(traced(later, TRIALS), plain)
    assert not ran, "a row was computed that another engine had"


def test_gradients_are_computed_again_above_the_prefix_only(world: World) -> None:
    training = {**LAST, "gradient_checkpointing": True}
    plain = traced(without_cache(world.engine(training=training)), TRIALS)
    assert_same(traced(world.engine(training=training), TRIALS), plain)


def test_rows_past_the_limit_are_computed_and_give_the_same(world: World) -> None:
    limit = 20_000
    plain = traced(without_cache(world.engine(slots=2, training=LAST)), TRIALS)
    engine = world.engine(slots=2, training=LAST, prefix_bytes=limit)
    assert_same(traced(engine, TRIALS), plain)
    assert packed(engine).prefix.store.full
    assert 0 < sum(file.stat().st_size for file in cache_folder().rglob("states.bin")) <= limit

    none = world.engine(slots=2, training=LAST, prefix_bytes=0)
    assert packed(none).prefix.store is None
    assert_same(traced(none, TRIALS), plain)


def test_a_cache_that_cannot_be_written_costs_time_only(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = traced(without_cache(world.engine(training=LAST)), TRIALS)
    (world.root / "file").write_text("")
    monkeypatch.setenv("SWEEPER_CACHE", str(world.root / "file"))
    assert_same(traced(world.engine(training=LAST), TRIALS), plain)
    assert "cannot be kept" in caplog.text


def test_a_cache_belongs_to_the_weights_below_and_to_how_they_are_used(world: World) -> None:
    setup = world.setup(training=LAST)
    base = AutoModelForCausalLM.from_pretrained(str(world.model))
    name = fingerprint(base, 1, setup)
    assert fingerprint(base, 1, world.setup(training={**LAST, "rank": 16, "chunk_tokens": 64})) == name
    others = [fingerprint(base, 2, setup), fingerprint(base, 1, world.setup(training={**LAST, "dtype": "bf16"}))]
    with torch.no_grad():
        base.model.layers[1].mlp.up_proj.weight[0, 0] += 1
        assert fingerprint(base, 1, setup) == name, "a weight above the prefix changes no state"
        base.model.layers[0].mlp.up_proj.weight[0, 0] += 1
        others.append(fingerprint(base, 1, setup))
    assert len({name, *others}) == 4


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("targets", ["all", "qv"])
def test_peft_loads_exactly_the_layers_that_were_trained(make_world: Callable[..., World], family: str, targets: str) -> None:
    world = make_world(family)
    story = drive(world.engine(training=LAST), [trial(targets=targets, warmup=0.0)])
    folder = Path(world.depot.path(story.ends[0].adapter or ""))
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["layers_to_transform"] == [1]
    assert config["layers_pattern"] == ("h" if family == "gpt2" else "layers")

    base = AutoModelForCausalLM.from_pretrained(str(world.model))
    model = PeftModel.from_pretrained(base, str(folder)).eval()
    keys = {k.replace(".default", "") for k in model.state_dict() if "lora_" in k}
    assert set(load_file(folder / "adapter_model.safetensors")) == keys
    assert keys
    assert all(".1." in key for key in keys)
    rows = [world.validation.row(i) for i in range(len(world.validation))]
    with torch.no_grad():
        loss = float(padded_loss(model, rows, 0.0))
        bare = float(padded_loss(AutoModelForCausalLM.from_pretrained(str(world.model)), rows, 0.0))
    assert story.ends[0].metrics["validation/loss"] == pytest.approx(loss, abs=1e-5)
    assert bare > loss + 0.2


def test_more_layers_than_there_are_and_targets_below_them_are_refused(tiny_folder: Callable[[str], Path]) -> None:
    for family in ("llama", "gpt2"):
        with pytest.raises(ModelError, match=r"'last 3', but this model has 2 layers; write last 2 at most, or all"):
            resolve_training(TrainingSpec(dtype="fp32", layers="last 3"), tiny_folder(family))
    with pytest.raises(ModelError, match=r"no layer for 'layers.0.mlp.up_proj' in its last 1 layers"):
        resolve_training(TrainingSpec(dtype="fp32", layers="last 1", targets="layers.0.mlp.up_proj"), tiny_folder("llama"))
    assert resolve_training(TrainingSpec(dtype="fp32", layers="last 2"), tiny_folder("llama")).layers == "last 2"


def test_all_layers_have_no_prefix(world: World) -> None:
    assert packed(world.engine(training={"layers": "last 2"})).prefix is None
    assert packed(world.engine()).prefix is None
    assert not cache_folder().exists()
