"""The language-model head and its cross-entropy, only where a label is, never with all logits in memory.

The gradient of the hidden states is made in the forward pass, a slice of positions at a time, so that no logits outlive their
slice. Slices are filled up to MIN_ROWS positions, so that a position's result does not depend on how many others there are.
Knows nothing of trials or models. Cost: three products [n, V, d] for n target tokens (four where the head is trained);
evaluation takes one a position, however many targets are asked there.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sweeper.engine.layout import MIN_ROWS

SLICE = 256  # positions at once: 50 MB of fp32 logits for 49,152 tokens of vocabulary


def head_losses(hidden: Tensor, weight: Tensor, target: Tensor, scale: Tensor, smoothing: Tensor) -> Tensor:
    """Cross-entropy with label smoothing at each position, times `scale`; fp32 [n]. Differentiate only its plain sum.

    hidden [n, d], weight [V, d], target int64 [n], scale and smoothing fp32 [n]. The loss of a position is
    (1 - e) * -log p(target) + e * mean over the vocabulary of -log p, as torch.nn.CrossEntropyLoss has it.
    """
    losses: Tensor = _HeadLoss.apply(hidden, weight, target, scale, smoothing)  # type: ignore[no-untyped-call]
    return losses


def target_log_probs(hidden: Tensor, weight: Tensor, target: Tensor, at: Tensor | None = None) -> Tensor:
    """log p(target) at position `at` of each target (by default one each, in order); fp32 [n].

    hidden [m, d], weight [V, d], target and at int64 [n]. A position that several targets share is computed once.
    """
    out = torch.empty(target.shape[0], dtype=torch.float32, device=hidden.device)
    place = torch.arange(target.shape[0], device=hidden.device) if at is None else at
    for start in range(0, hidden.shape[0], SLICE):
        logits = _logits(hidden[start : start + SLICE], weight)
        mine = torch.nonzero((place >= start) & (place < start + SLICE))[:, 0]
        row = place[mine] - start
        out[mine] = logits[row, target[mine]] - logits.logsumexp(1)[row]
    return out


def best_tokens(hidden: Tensor, weight: Tensor) -> Tensor:
    """The most probable next token at each position, int64 [n]; of equals the first. hidden [n, d], weight [V, d]."""
    return torch.cat([_logits(part, weight).argmax(1) for part in torch.split(hidden, SLICE)])


def _filled(x: Tensor) -> Tensor:
    """x [n, d] with zero rows up to MIN_ROWS."""
    return x if x.shape[0] >= MIN_ROWS else F.pad(x, (0, 0, 0, MIN_ROWS - x.shape[0]))


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """fp32 [n, V], a new tensor."""
    return F.linear(_filled(hidden), weight)[: hidden.shape[0]].float()


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, scale: Tensor, smoothing: Tensor) -> Tensor:
        losses = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        dhidden = torch.empty_like(hidden)
        dweight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for start in range(0, hidden.shape[0], SLICE):
            part = slice(start, min(start + SLICE, hidden.shape[0]))
            losses[part], dlogits = _slice(
                _logits(hidden[part], weight), target[part, None], scale[part, None], smoothing[part, None]
            )
            dlogits = dlogits.to(hidden.dtype)
            dhidden[part] = torch.mm(_filled(dlogits), weight)[: dlogits.shape[0]]
            if dweight is not None:
                dweight.addmm_(dlogits.t(), hidden[part])
        ctx.save_for_backward(dhidden, dweight)
        return losses

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Tensor, Tensor | None, None, None, None]:
        dhidden, dweight = ctx.saved_tensors
        return dhidden, dweight, None, None, None


def _slice(logits: Tensor, target: Tensor, scale: Tensor, smoothing: Tensor) -> tuple[Tensor, Tensor]:
    """Losses [n] and the gradient of the logits [n, V], of logits [n, V] (overwritten) and three columns [n, 1]."""
    total = logits.logsumexp(1, keepdim=True)
    chosen = logits.gather(1, target)
    mean = logits.mean(1, keepdim=True)
    losses = scale * (total - (1 - smoothing) * chosen - smoothing * mean)
    dlogits = logits.sub_(total).exp_()
    dlogits.sub_(smoothing / dlogits.shape[1])
    dlogits.scatter_add_(1, target, smoothing - 1)
    return losses[:, 0], dlogits.mul_(scale)
