"""The frozen linear layer: a weight that is stored, applied and never trained.

A storage (fp32 and bf16 now; int8 or nf4 later) is a class with three members, so that nothing above knows how the weight lies
in memory. Activations and gradients are fp32 for every storage. What a bf16 product gives is rounded to its 8 bits *before* an
adapter's update is added: added in bf16, an update below half of the last bit would leave no trace, and a trial would learn at
half the pace (measured; peft on a bf16 base does). Cost: `Dense` adds nothing to a plain `F.linear`, `HalfDense` two copies.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweeper.errors import ModelError


class FrozenLinear(Protocol):
    """y = x W^T + b with a W that has no gradient; x, y and their gradients are fp32."""

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
    """The weight in fp32."""

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


class HalfDense(Dense):
    """The weight in bf16, multiplied in bf16 with sums in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x.to(self.weight.dtype), self.weight).float()
        return y if self.bias is None else y.add_(self.bias)

    def input_gradient(self, dy: Tensor) -> Tensor:
        return torch.mm(dy.to(self.weight.dtype), self.weight).float()


def freeze(linear: nn.Linear, base: str) -> FrozenLinear:
    """The frozen form of `linear`, whose weight is fp32 or bf16, for `training.base`.

    Raises ModelError for a storage that this engine has not.
    """
    if base != "full":
        raise ModelError(
            f"training.base is {base!r}, but this engine stores the base model only as 'full'; leave training.base out"
        )
    weight: Tensor = cast(Any, linear).weight.detach()
    kind = Dense if weight.dtype == torch.float32 else HalfDense
    return kind(weight, None if linear.bias is None else linear.bias.detach())
