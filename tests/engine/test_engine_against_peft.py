"""Twenty steps of the engine against plain transformers, peft and torch.optim.AdamW on the same rows, from the same start.

Stated tolerance on CPU in fp32: training losses within 2e-5 of each other, LoRA weights within 2e-4 relative, full weights within
2e-3 of the update. Dropout is off, as the two
draw their masks differently; everything else (accumulation, clipping, smoothing, decay, warm-up, schedule) is on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

from sweeper.data.tokens import TokenRow
from sweeper.engine.engine import TrialEngine
from tests.engine.engine_world import World, drive, trial

STEPS = 20
SMOOTHING = 0.05
KEY_BIASES = ("c_attn.bias", "query_key_value.bias")


def padded_loss(model: Any, rows: list[TokenRow], smoothing: float) -> torch.Tensor:
    """What the HF Trainer computes: padded rows, labels -100 outside of the completion, one mean over the batch."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        tokens = torch.from_numpy(row.ids.astype(np.int64))
        ids[i, : len(tokens)], mask[i, : len(tokens)] = tokens, 1
        labels[i, : len(tokens)][torch.from_numpy(row.target.copy())] = tokens[torch.from_numpy(row.target.copy())]
    logits = model(input_ids=ids, attention_mask=mask).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, label_smoothing=smoothing)


def engine_steps(
    world: World, method: str, base: str = "full", **params: Any
) -> tuple[TrialEngine, list[float], list[list[int]], Path]:
    """Losses and rows of each step of the engine, and the folder of the weights it began with."""
    engine = world.engine(training={"method": method, "base": base, "chunk_tokens": 40})
    engine.admit(trial(examples=5 * STEPS, every=5 * STEPS, batch_size=5, label_smoothing=SMOOTHING, **params))
    running = engine._running[0]
    start = world.root / "start"
    for name, content in engine._net.export(0).items():
        start.mkdir(exist_ok=True)
        (start / name).write_bytes(content)
    rows = [list(running.batches.at(5 * step).rows) for step in range(STEPS)]
    losses: list[float] = []
    while len(losses) < STEPS:
        before, batch = running.progress.interval_loss, running.batch
        engine.step()
        if running.batch is not batch:
            losses.append(running.progress.interval_loss - before)
    return engine, losses, rows, start


def reference_steps(model: Any, world: World, rows: list[list[int]], learning_rate: float) -> list[float]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = get_cosine_schedule_with_warmup(optimizer, 2, STEPS)
    losses = []
    model.train()
    for batch in rows:
        loss = padded_loss(model, [world.train.row(i) for i in batch], SMOOTHING)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize(
    ("family", "targets"),
    [("llama", "all"), ("qwen3", "qv"), ("gpt_neox", "all"), ("llama", "mlp"), ("llama", "layers.1.mlp.up_proj"), ("gpt2", "all")],
)
def test_lora_trains_as_peft_does(make_world: Callable[..., World], family: str, targets: str) -> None:
    world = make_world(family, start=(7, 9, 40) if targets == "all" else ())
    engine, losses, rows, start = engine_steps(world, "lora", targets=targets)
    base = AutoModelForCausalLM.from_pretrained(str(world.model))
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model = PeftModel.from_pretrained(base, str(start), is_trainable=True)
    expected = reference_steps(model, world, rows, 1e-2)

    assert expected[-1] < expected[0] - 0.1, "the reference learned nothing, so agreement would mean nothing"
    np.testing.assert_allclose(losses, expected, atol=2e-5)
    mine = engine._net.export(0)
    (world.root / "end").mkdir()
    for name, content in mine.items():
        (world.root / "end" / name).write_bytes(content)
    weights = load_file(world.root / "end" / "adapter_model.safetensors")
    theirs = {k.replace(".default", ""): v for k, v in model.state_dict().items() if "lora_" in k}
    assert set(weights) == set(theirs)
    for key, value in theirs.items():
        assert torch.linalg.norm(weights[key] - value) <= 2e-4 * torch.linalg.norm(value), key


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])
def test_full_trains_as_torch_does(make_world: Callable[..., World], family: str) -> None:
    world = make_world(family)
    engine, losses, rows, start = engine_steps(world, "full", learning_rate=1e-3)
    model = AutoModelForCausalLM.from_pretrained(str(start))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    expected = reference_steps(model, world, rows, 1e-3)

    assert expected[-1] < expected[0] - 0.5
    np.testing.assert_allclose(losses, expected, atol=2e-5)
    (world.root / "end").mkdir()
    for name, content in engine._net.export(0).items():
        (world.root / "end" / name).write_bytes(content)
    mine = flat(AutoModelForCausalLM.from_pretrained(str(world.root / "end")))
    update = flat(model) - flat(AutoModelForCausalLM.from_pretrained(str(start)))
    assert torch.linalg.norm(mine - flat(model)) <= 2e-3 * torch.linalg.norm(update)


def flat(model: Any) -> torch.Tensor:
    """All weights but the biases of keys: their gradient is 0 but for rounding, which Adam blows up to whole steps."""
    return torch.cat([p.detach().flatten() for name, p in model.named_parameters() if not name.endswith(KEY_BIASES)])


def test_an_exported_adapter_gives_peft_the_same_loss(world: World) -> None:
    story = drive(world.engine(), [trial()])
    folder = Path(world.depot.path(story.ends[0].adapter or ""))
    base = AutoModelForCausalLM.from_pretrained(str(world.model))
    model = PeftModel.from_pretrained(base, str(folder)).eval()
    keys = {k.replace(".default", "") for k in model.state_dict() if "lora_" in k}
    assert set(load_file(folder / "adapter_model.safetensors")) == keys

    rows = [world.validation.row(i) for i in range(len(world.validation))]
    with torch.no_grad():
        loss = float(padded_loss(model, rows, 0.0))
        bare = float(padded_loss(AutoModelForCausalLM.from_pretrained(str(world.model)), rows, 0.0))
    assert story.ends[0].metrics["validation/loss"] == pytest.approx(loss, abs=1e-5)
    assert bare > loss + 0.5
