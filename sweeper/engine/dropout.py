"""A model's own dropout: which probabilities it has, how they are set, and how its draws are seeded.

In full fine-tuning `dropout` is the probability of every dropout field of the model's config; with LoRA those are 0 and
`dropout` is LoRA's own. transformers' layers read the probability from a module or an attribute made from the config, so both
are set in place, without loading the model again. Costs a walk over the modules.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_SKIP = ("lora_dropout",)


def set_dropout(model: nn.Module, probability: float) -> None:
    """Sets every dropout probability of `model`, LoRA's own aside."""
    for name, module in model.named_modules():
        if any(part in name for part in _SKIP):
            continue
        if isinstance(module, nn.Dropout):
            module.p = probability
        for attribute, value in vars(module).items():
            if "dropout" in attribute and isinstance(value, float | int) and not isinstance(value, bool):
                setattr(module, attribute, probability)


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Draws of torch's global generator inside come from `seed`; outside nothing is noticed."""
    devices = [torch.device(device)] if device != "cpu" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
