"""`dtype: bf16`: linear layers multiply in bf16 with weights of bf16; everything around them is fp32.

The residual stream, norms, attention, embeddings, head and losses, and whatever is added to a linear layer's result, stay fp32:
they cost little, and a small change that is added to a number of 8 bits is lost for good. On SmolLM2-135M and the demo's
sentences each of the first eight steps' losses is then within 1 % of fp32's (learning rate 2e-4, batch 8: 5.90 to 1.67); bf16
throughout was at 2.35 where fp32 was at 1.67, and so was peft with fp32 adapters on a bf16 base. Attention in bf16 was besides
ten times slower on the CPU than in fp32.
Does not know trials. Cost: one pass over the weights at loading; embeddings and head take four bytes a number.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sweeper.engine.frozen import few_sizes


class HalfLinear(nn.Linear):
    """fp32 in and out, bf16 weights; the bias, if any, is fp32."""

    def forward(self, input: Tensor) -> Tensor:
        """input [..., in] -> [..., out]."""
        y = _product(input, self.weight)
        return y if self.bias is None else y + self.bias


class HalfConv1D(Conv1D):  # type: ignore[misc]
    """transformers' linear layer with a transposed weight, as HalfLinear."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        bias: Tensor = self.bias
        return _product(x, self.weight.t()) + bias


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., in] times the transpose of weight [out, in] in its dtype, as fp32 [..., out]."""
    rows = x.to(weight.dtype).flatten(0, -2)
    count = rows.shape[0]
    if x.device.type == "cpu":
        rows = F.pad(rows, (0, 0, 0, few_sizes(count) - count))
    return F.linear(rows, weight)[:count].float().reshape(*x.shape[:-1], -1)


_HALVES: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: HalfLinear, Conv1D: HalfConv1D}


def halve(model: Any) -> None:
    """Turns the linear layers of `model`, the head aside, into their half precision form, and all else into fp32."""
    head = model.get_output_embeddings()
    halves = {name: module for name, module in model.named_modules() if type(module) in _HALVES and module is not head}
    for module in halves.values():
        module.__class__ = _HALVES[type(module)]
        module.weight.data = module.weight.data.to(torch.bfloat16)
    kept = {id(module.weight) for module in halves.values()}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in kept and tensor.is_floating_point():
            tensor.data = tensor.data.float()
