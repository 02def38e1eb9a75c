"""Ties a module's own parameters to a flat fp32 row, so that full fine-tuning and peft's layers train as packed adapters do.

fp32 parameters become views of the row and their gradients views of its gradient: nothing is copied. Other dtypes keep their
own storage: gradients are added to the row after each backward pass, weights copied back after each step, so that the optimizer
always works in fp32. Costs one copy each way a step for bf16.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from sweeper.engine.optimizer import Row, views


class Binding:
    """`row` holds what `parameters` (in that order) held; from now on they are one."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        device = self._parameters[0].device
        self.row = Row(sum(p.numel() for p in self._parameters), device)
        self._weights = views(self.row.weights, [p.shape for p in self._parameters])
        self._gradients = views(self.row.gradient, [p.shape for p in self._parameters])
        with torch.no_grad():
            for p, weight, gradient in zip(self._parameters, self._weights, self._gradients, strict=True):
                weight.copy_(p)
                p.requires_grad_(True)
                if p.dtype == weight.dtype:
                    p.data = weight
                    p.grad = gradient

    def collect(self) -> None:
        """After a backward pass: the row has the gradient."""
        for p, gradient in zip(self._parameters, self._gradients, strict=True):
            if p.dtype != gradient.dtype and p.grad is not None:
                gradient += p.grad
                p.grad = None

    def push(self) -> None:
        """After the row changed: the parameters have its weights."""
        with torch.no_grad():
            for p, weight in zip(self._parameters, self._weights, strict=True):
                if p.dtype != weight.dtype:
                    p.copy_(weight)
