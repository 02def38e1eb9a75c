"""What fits, before anything is loaded: a model's footprint worked out from its config, and a sentence for people.

Kept for the backward pass, in fp32 numbers a token and layer (d hidden, f feed-forward, q and kv widths of the attention):

    gated (Llama, Qwen, Mistral)   4 d + 3 q + 2 kv + 4 f, and q + kv more where queries and keys are normalised
    plain (GPT-NeoX)               10 d + 2 f

with the rank for each adapted layer, and a byte for each of its inputs where there is dropout; besides, once in a pass, 5 d (and
2 f where there is dropout) for what embedding, head and the present step hold. With gradient checkpointing d a layer, and one
layer's own. An engine measures at its start (`footprint.py`); this agrees with that within a sixth where every token is predicted,
and is too high by part of the last layer (`last.py`) where few are. Where the dtype is still open it is fp32, the larger.
Does not know data. Cost: reading the config; no weights, no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sweeper.engine.capacity import MOST_SLOTS, gigabytes
from sweeper.engine.footprint import CPU_OVERHEAD, LOGITS_AT_ONCE, Footprint
from sweeper.engine.model import knows, linear_names, load_config, skeleton
from sweeper.engine.room import free_bytes
from sweeper.engine.targets import block, resolve_targets
from sweeper.spec.models import TrainingSpec

PROCESS_BYTES = 450_000_000
"""An engine's process without a model: Python, torch and transformers."""
PLANNED = 0.9
_STORED = {"full": 4.0, "int8": 1.02, "nf4": 0.56}  # bytes a number of a linear layer


@dataclass(frozen=True)
class Fits:
    """`slots` trials with passes of `tokens` tokens fit into `memory` bytes (0: not one), and rows of up to `longest` tokens."""

    footprint: Footprint
    memory: int
    slots: int
    tokens: int
    longest: int
    sentence: str


def what_fits(
    model: Path | str,
    training: TrainingSpec,
    device: str = "cpu",
    memory: int | None = None,
    rank: int | None = None,
    trust_remote_code: bool = False,
) -> Fits:
    """What fits into `memory` bytes of `device`, by default nine tenths of what is free there now.

    `training` may be unresolved; `rank` is the largest of the space. Raises ModelError if the config cannot be read.
    """
    found = estimate(model, training, device, rank, trust_remote_code)
    has = int(PLANNED * free_bytes(device)) if memory is None else memory
    tokens = training.chunk_tokens or (1024 if torch.device(device).type == "cpu" else 8192)
    slots = min(MOST_SLOTS, found.most_slots(tokens, has)) if training.method == "lora" else min(1, found.most_slots(tokens, has))
    longest = found.most_tokens(1, has)
    return Fits(found, has, slots, tokens, longest, _sentence(found, has, slots, tokens, longest))


def estimate(
    model: Path | str, training: TrainingSpec, device: str = "cpu", rank: int | None = None, trust_remote_code: bool = False
) -> Footprint:
    """The footprint of an engine, from the model's config. Raises ModelError."""
    config = load_config(model, trust_remote_code)
    bare = skeleton(config, trust_remote_code)
    linears = linear_names(bare)
    adapted = set(linears)
    if training.method == "lora":
        adapted = set(resolve_targets(training.targets, config.model_type, linears, training.last_layers()))
    shapes = {name: tuple(bare.get_submodule(name).weight.shape) for name in linears}
    numbers = sum(p.numel() for p in bare.parameters())
    frozen = sum(a * b for a, b in shapes.values())
    each = 2.0 if training.dtype == "bf16" and training.base == "full" else _STORED[training.base]
    cpu = torch.device(device).type == "cpu"
    r = rank or training.rank
    return Footprint(
        base=round((PROCESS_BYTES if cpu else 0) + each * frozen + 4 * (numbers - frozen)),
        slot=16 * r * sum(sum(shapes[name]) for name in adapted) if training.method == "lora" else 16 * numbers,
        fixed=0.0,
        token=_token_bytes(bare, knows(config), shapes, adapted, training, r),
        target=4.0 * LOGITS_AT_ONCE * int(config.get_text_config().vocab_size),
        density=1.0,
        overhead=CPU_OVERHEAD if cpu else 1.0,
    )


def _token_bytes(
    bare: Any, packed: bool, shapes: dict[str, tuple[int, ...]], adapted: set[str], training: TrainingSpec, rank: int
) -> float:
    text = bare.config.get_text_config()
    blocks = {block(name) for name in adapted} or {None}
    hidden, heads = int(text.hidden_size), int(text.num_attention_heads)
    wide = int(getattr(text, "intermediate_size", None) or 4 * hidden)
    size = int(getattr(text, "head_dim", None) or hidden // heads)
    query, keys = heads * size, int(getattr(text, "num_key_value_heads", None) or heads) * size
    gated = any(name.endswith("gate_proj") for name in shapes)
    own: float = 4 * hidden + 3 * query + 2 * keys + 4 * wide if gated else 10 * hidden + 2 * wide
    if any(hasattr(module, "q_norm") for module in bare.modules()):
        own += query + keys
    once = 5.0 * hidden
    if training.method == "lora":
        own += rank * len(adapted) / len(blocks)
        if training.dropout > 0:
            once += 2 * wide
            own += sum(shapes[name][1] for name in adapted) / len(blocks) / 4
    # transformers' own attention and peft's layers keep about half as much again.
    own *= 1.0 if packed else 1.5
    deep = training.last_layers() or int(text.num_hidden_layers)
    return 4.0 * (once + (hidden * deep + own if training.gradient_checkpointing else own * deep))


def _sentence(found: Footprint, memory: int, slots: int, tokens: int, longest: int) -> str:
    parts = (
        f"the model and its process take about {gigabytes(found.base)}, a trial {gigabytes(found.slot)}, "
        f"a pass of {tokens:,} tokens {gigabytes(found.pass_bytes(tokens))}"
    )
    if longest == 0:
        return f"{parts}: {gigabytes(memory)} has no room for one trial"
    if slots == 0:
        return f"{parts}: {gigabytes(memory)} has room for one trial with passes and rows of up to {longest:,} tokens"
    many = f"{slots} trials{' or more' if slots == MOST_SLOTS else ''}" if slots > 1 else "one trial"
    return f"{parts}: {gigabytes(memory)} has room for {many}, and for rows of {longest:,} tokens"
