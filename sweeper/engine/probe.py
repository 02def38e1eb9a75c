"""What is settled at the start of a study, on the machine that trains: dtype, chunk size, row length.

`dtype: auto` measures one matrix product in fp32 and bf16 and takes bf16 where it is at least WORTH_IT times faster: on one CPU
bf16 products ran 4.6 times faster, on another slower. What was chosen is stored with the study and never changes.
Does not know trials. Cost: a fifth of a second for the measurement, and reading the config.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from sweeper.engine.model import (
    check_folder,
    context_length,
    dropout_fields,
    family_note,
    knows,
    linear_names,
    load_config,
    skeleton,
)
from sweeper.engine.targets import resolve_targets
from sweeper.errors import ModelError
from sweeper.spec.models import TrainingSpec

WORTH_IT = 1.3
CHUNK_TOKENS = {"cpu": 1024, "cuda": 8192}


def resolve_training(
    training: TrainingSpec,
    model_dir: Path,
    device: str = "cpu",
    threads: int = 1,
    trust_remote_code: bool = False,
    notice: Callable[[str], None] | None = None,
) -> TrainingSpec:
    """`training` with dtype, max_length and chunk_tokens as numbers that hold for the whole study.

    Raises ModelError for what this engine or model cannot do: stored bases, targets that name no layer, full fine-tuning with
    dropout on a model without dropout fields, rows longer than the context. `notice` is told in a sentence each what was chosen
    where the user left it open: the dtype, and that a model is not packed.
    """
    check_folder(model_dir)
    config = load_config(model_dir, trust_remote_code)
    if training.base != "full":
        raise ModelError(f"training.base is {training.base!r}, but this engine stores the base model only as 'full'; leave it out")
    if training.method == "lora":
        resolve_targets(training.targets, config.model_type, linear_names(skeleton(config, trust_remote_code)))
    elif training.dropout > 0:
        require_dropout(model_dir, trust_remote_code)
    context = context_length(config)
    if training.max_length is not None and training.max_length > context:
        raise ModelError(f"training.max_length is {training.max_length}, but the model's context is {context} tokens; lower it")
    dtype = measure_dtype(device, threads) if training.dtype == "auto" else training.dtype
    if notice is not None:
        if training.dtype == "auto":
            notice(f"dtype: auto is {dtype} on this machine ({device})")
        if not knows(config):
            notice(family_note(config))
    return training.model_copy(
        update={
            "dtype": dtype,
            "max_length": training.max_length or context,
            "chunk_tokens": training.chunk_tokens or CHUNK_TOKENS[torch.device(device).type],
        }
    )


def require_dropout(model_dir: Path, trust_remote_code: bool = False) -> None:
    """Raises ModelError if full fine-tuning of this model could not drop out anything."""
    config = load_config(model_dir, trust_remote_code)
    if not dropout_fields(config):
        raise ModelError(
            f"dropout is asked for with method: full, but {config.model_type} has no dropout fields; use dropout 0 or lora"
        )


def packed_note(model_dir: Path, trust_remote_code: bool = False) -> str | None:
    """A sentence for the user where the model trains with transformers' and peft's own layers; None where it is packed."""
    config = load_config(model_dir, trust_remote_code)
    return None if knows(config) else family_note(config)


def measure_dtype(device: str, threads: int = 1) -> str:
    """bf16 where its matrix products are at least WORTH_IT times faster than fp32's on this device, else fp32."""
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return "bf16" if _seconds(torch.float32) >= WORTH_IT * _seconds(torch.bfloat16) else "fp32"
    finally:
        torch.set_num_threads(before)


def _seconds(dtype: torch.dtype) -> float:
    """Best of five products of 256 tokens with a 1024 x 1024 weight."""
    x, weight = torch.ones(256, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    times: list[float] = []
    for _ in range(6):
        began = time.perf_counter()
        torch.mm(x, weight)
        times.append(time.perf_counter() - began)
    return min(times[1:])
