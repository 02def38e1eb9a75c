"""Root mean square normalisation (Zhang and Sennrich 2019) whose weight is frozen, in half the passes over memory.

    y = w * x / sqrt(mean(x^2) + eps)

transformers' layers spell it out, and autograd keeps and walks over what each operation makes; here only x and one number a row
are kept, and results are made in place. Forward and backward of 868 tokens of width 576 take 0.77 ms in place of 1.7 (one core,
fp32; torch's own F.rms_norm takes as long as the spelt out one). A row's result depends on that row alone.
Knows nothing of trials. For a frozen weight alone: full fine-tuning keeps transformers' layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_KINDS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")


class FrozenNorm(nn.Module):
    """Stands where a model's own layer of _KINDS stood."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x fp32 [..., d] -> [..., d]."""
        y: Tensor = _Norm.apply(x, self.weight, self._eps)  # type: ignore[no-untyped-call]
        return y


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        # The norm's own sum of squares, so that no tensor of squares is made.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        factor: Tensor = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, factor)
        return (x * factor).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        x, weight, factor = ctx.saved_tensors
        dx = gradients[0] * weight
        along = torch.linalg.vecdot(dx, x).unsqueeze(-1)
        along.mul_(factor.pow(3)).div_(-x.shape[-1])
        return dx.mul_(factor).addcmul_(x, along), None, None


def freeze_norms(model: nn.Module) -> None:
    """Puts a FrozenNorm for every layer of a kind that is known, below `model`."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ in _KINDS:
            parent, _, last = name.rpartition(".")
            frozen = FrozenNorm(module.weight.detach(), float(module.variance_epsilon))
            setattr(model.get_submodule(parent), last, frozen)
