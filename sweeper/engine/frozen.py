"""The frozen linear layer: a weight that is stored, applied and never trained.

A storage (fp32, bf16, int8 or nf4) is a class with the members of `FrozenLinear`, so that nothing above knows how the weight lies
in memory. Activations and gradients are fp32 for every storage. What a bf16 product gives is rounded to its 8 bits *before* an
adapter's update is added: added in bf16, an update below half of the last bit would leave no trace, and a trial would learn at
half the pace (measured; peft on a bf16 base does).

    storage   bytes a weight   relative error   how
    int8      1                0.8 %            a scale for each output, 127 steps either way (Dettmers et al. 2022)
    nf4       0.56             9 %              16 levels, of a normal distribution, a scale for 64 weights (Dettmers et al. 2023)

Both are torch's own operations, so they run on every device: a weight becomes fp32 (bf16 where the weight was) for its product and
is let go of again. Its product and gradient are those of the weight so rounded, and a row's result depends on its neighbours no
more than with `Dense`.
Cost: `Dense` adds nothing to a plain `F.linear`, `HalfDense` two copies; int8 the time of 4 tokens' product, nf4 of 15 (one
core; twice in training), and one layer's weight in memory for as long as its product takes.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweeper.errors import ModelError

_BLOCK = 64  # weights of nf4 that share a scale


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
        return _bytes(self.weight, self.bias)


class HalfDense(Dense):
    """The weight in bf16, multiplied in bf16 with sums in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(self._half(x), self.weight)[: x.shape[0]].float()
        return y if self.bias is None else y.add_(self.bias)

    def input_gradient(self, dy: Tensor) -> Tensor:
        return torch.mm(self._half(dy), self.weight)[: dy.shape[0]].float()

    def _half(self, x: Tensor) -> Tensor:
        """x in the weight's dtype; on a CPU with rows of zeros up to one of few numbers of rows."""
        if x.device.type != "cpu":
            return x.to(self.weight.dtype)
        out = x.new_empty(few_sizes(x.shape[0]), x.shape[1], dtype=self.weight.dtype)
        out[: x.shape[0]] = x
        out[x.shape[0] :] = 0
        return out


def few_sizes(rows: int) -> int:
    """`rows` or the next above of the multiples of 8, from 257 on of 16, from 513 on of 32, ...: at most 16 an octave.

    oneDNN, which multiplies bf16 on a CPU, makes a kernel for every shape it meets and keeps a thousand of them, 1.4 MB each: an
    engine whose passes had any number of rows grew by half a gigabyte within a hundred steps.
    """
    step = max(8, 1 << max(0, (rows - 1).bit_length() - 5))
    return -(-rows // step) * step


class Int8:
    """The weight as int8 [out, in] with a fp32 scale for each output."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.out_features, self.in_features = weight.shape
        self.bias, self._dtype = bias, weight.dtype
        whole = weight.float()
        self._scale = whole.abs().amax(1, keepdim=True).clamp_min_(torch.finfo(torch.float32).tiny).div_(127)
        self._codes = whole.div(self._scale).round_().to(torch.int8)

    def dense(self) -> Tensor:
        """The weight [out, in] that the codes stand for, in the dtype it came in."""
        return self._codes.float().mul_(self._scale).to(self._dtype)

    def forward(self, x: Tensor) -> Tensor:
        return _plain(self.dense(), self.bias).forward(x)

    def input_gradient(self, dy: Tensor) -> Tensor:
        return _plain(self.dense(), self.bias).input_gradient(dy)

    def nbytes(self) -> int:
        return _bytes(self._codes, self._scale, self.bias)


class Nf4:
    """The weight as two 4-bit levels a byte, with a fp32 scale for each block of 64 weights in row order."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.out_features, self.in_features = weight.shape
        self.bias, self._dtype = bias, weight.dtype
        flat = weight.float().flatten()
        blocks = F.pad(flat, (0, -len(flat) % _BLOCK)).view(-1, _BLOCK)
        self._scale = blocks.abs().amax(1, keepdim=True)
        levels = _LEVELS.to(weight.device)
        between = (levels[1:] + levels[:-1]) / 2
        codes = torch.bucketize(blocks / self._scale.clamp_min(torch.finfo(torch.float32).tiny), between, out_int32=True)
        pairs = codes.view(-1, 2)
        self._codes = (pairs[:, 0] * 16 + pairs[:, 1]).to(torch.uint8)
        # Two fp32 levels a byte, looked up at once as if they were one number of 8 bytes: a third of the time of two look-ups.
        self._pairs = torch.cartesian_prod(levels, levels).contiguous().view(torch.float64).flatten()

    def dense(self) -> Tensor:
        """The weight [out, in] that the codes stand for, in the dtype it came in."""
        levels = torch.index_select(self._pairs, 0, self._codes.int()).view(torch.float32).view(-1, _BLOCK)
        flat = levels.mul_(self._scale).flatten()[: self.out_features * self.in_features]
        return flat.view(self.out_features, self.in_features).to(self._dtype)

    def forward(self, x: Tensor) -> Tensor:
        return _plain(self.dense(), self.bias).forward(x)

    def input_gradient(self, dy: Tensor) -> Tensor:
        return _plain(self.dense(), self.bias).input_gradient(dy)

    def nbytes(self) -> int:
        return _bytes(self._codes, self._scale, self.bias)


# Quantiles of a normal distribution, with 0 among them; table 6 of the QLoRA paper (arXiv 2305.14314, appendix E).
_LEVELS = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
_STORED: dict[str, type[Int8 | Nf4]] = {"int8": Int8, "nf4": Nf4}


def freeze(linear: nn.Linear, base: str) -> FrozenLinear:
    """The frozen form of `linear`, whose weight is fp32 or bf16, for `training.base`.

    Raises ModelError for a storage that this engine has not.
    """
    weight: Tensor = cast(Any, linear).weight.detach()
    bias = None if linear.bias is None else linear.bias.detach()
    if base == "full":
        return _plain(weight, bias)
    if base not in _STORED:
        raise ModelError(f"training.base is {base!r}, but this engine stores the base model as full, {' or '.join(_STORED)}")
    return _STORED[base](weight, bias)


def _plain(weight: Tensor, bias: Tensor | None) -> Dense:
    return Dense(weight, bias) if weight.dtype == torch.float32 else HalfDense(weight, bias)


def _bytes(*tensors: Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
