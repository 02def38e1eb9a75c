"""What is settled at the start of a study, on the machine that trains: dtype, chunk size, row length.

What was chosen is stored with the study and never changes. How `dtype: auto` chooses is in `dtypes.py` (faster?)
and `agree.py` (like losses?).
Does not know trials. Cost: the measurement for `dtype: auto`, and reading the config.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sweeper.data.tokens import TokenSet
from sweeper.engine.agree import MOST_PARAMETERS, compared
from sweeper.engine.dtypes import layer_shapes, measure
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
from sweeper.engine.room import free_bytes
from sweeper.engine.targets import resolve_targets
from sweeper.errors import ModelError
from sweeper.spec.models import TrainingSpec

CHUNK_TOKENS = {"cpu": 1024, "cuda": 8192}


def resolve_training(
    training: TrainingSpec,
    model_dir: Path,
    device: str = "cpu",
    threads: int = 1,
    trust_remote_code: bool = False,
    notice: Callable[[str], None] | None = None,
    data: Path | None = None,
    searched_targets: Sequence[str] = (),
) -> TrainingSpec:
    """`training` with dtype, max_length and chunk_tokens as numbers that hold for the whole study.

    Raises ModelError for what this engine or model cannot do: a stored base where a model is not packed, more layers than there
    are, targets that name no layer, full fine-tuning with dropout on a model without dropout fields, rows longer than the context.
    `data` is the training rows' folder, on which dtypes are compared; `searched_targets` what trials may have in place of
    `training.targets`. `notice` is told in a sentence each what was chosen where the
    user left it open: the dtype with what was measured, and that a model is not packed.
    """
    check_folder(model_dir)
    config = load_config(model_dir, trust_remote_code)
    if training.base != "full" and not knows(config):
        raise ModelError(
            f"training.base is {training.base!r}, but {config.model_type} trains with transformers' own layers, which need the "
            "base as it is; leave training.base out"
        )
    model = skeleton(config, trust_remote_code)
    if training.method == "lora":
        for targets in (training.targets, *searched_targets):
            resolve_targets(targets, config.model_type, linear_names(model), training.last_layers())
    elif training.dropout > 0:
        require_dropout(model_dir, trust_remote_code)
    context = context_length(config)
    if training.max_length is not None and training.max_length > context:
        raise ModelError(f"training.max_length is {training.max_length}, but the model's context is {context} tokens; lower it")
    dtype: str = training.dtype
    why = ""
    if dtype == "auto":
        dtype, why = _choose_dtype(model, training, model_dir, device, threads, trust_remote_code, data)
    if notice is not None:
        if why:
            notice(f"dtype: auto is {dtype} on this machine ({device}): {why}")
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


def _choose_dtype(
    model: Any, training: TrainingSpec, folder: Path, device: str, threads: int, trust_remote_code: bool, data: Path | None
) -> tuple[str, str]:
    """What `dtype: auto` is here, and why."""
    if training.method == "full":
        return "fp32", "full fine-tuning in bf16 loses small updates"
    if torch.device(device).type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "fp32", "this device has no bf16"
    measured = measure(layer_shapes(model), device, threads)
    if measured.dtype == "fp32":
        return "fp32", str(measured)
    size = sum(p.numel() for p in model.parameters())
    if size > MOST_PARAMETERS or 5 * size > free_bytes(device):
        return (
            "bf16",
            f"{measured}; losses were not compared, because {size / 1e9:.1f} billion parameters in fp32 cost too much here",
        )
    rows = TokenSet(data) if data is not None else None
    vocabulary = int(model.config.get_text_config().vocab_size)
    found = compared(training, folder, rows, vocabulary, device, threads, trust_remote_code)
    return ("bf16" if found.agrees else "fp32"), f"{measured}; {found}"
