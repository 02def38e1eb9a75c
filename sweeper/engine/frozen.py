"""The frozen linear layer: a weight that is stored, applied and never trained.

A storage (fp32 and bf16 now; int8 or nf4 later) is a class with three members, so that nothing above knows how the weight lies
in memory. Cost: `Dense` adds nothing to a plain `F.linear`.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweeper.errors import ModelError


class FrozenLinear(Protocol):
    """y = x W^T + b with a W that has no gradient."""

    in_features: int
    out_features: int

    def forward(self, x: Tensor) -> Tensor:
        """x [n, in] -> y [n, out], a new tensor that the caller may change."""
        ...

    def input_gradient(self, dy: Tensor) -> Tensor:
        """dy [n, out] -> dx [n, in], a new tensor that the caller may change."""
        ...

    def nbytes(self) -> int:
        """Bytes of the stored weight and bias."""
        ...


class Dense:
    """The weight as it is, fp32 or bf16."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias
        self.out_features, self.in_features = weight.shape

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def input_gradient(self, dy: Tensor) -> Tensor:
        return torch.mm(dy, self.weight)

    def nbytes(self) -> int:
        tensors = [self.weight] if self.bias is None else [self.weight, self.bias]
        return sum(t.numel() * t.element_size() for t in tensors)


def freeze(linear: nn.Linear, base: str) -> FrozenLinear:
    """The frozen form of `linear` for `training.base`. Raises ModelError for a storage that this engine has not."""
    if base != "full":
        raise ModelError(
            f"training.base is {base!r}, but this engine stores the base model only as 'full'; leave training.base out"
        )
    return Dense(cast(Any, linear).weight.detach(), None if linear.bias is None else linear.bias.detach())
