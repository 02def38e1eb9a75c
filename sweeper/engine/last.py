"""The last decoder layer, computed only for the tokens whose hidden state is asked for.

Above the last attention nothing passes between tokens, and a pass asks for the states of few: the tokens before a label, 2 of 30 in
a row of a classification task. Keys and values are computed for all tokens; queries, the attention's output, the feed-forward
part, the residuals and the norm after it only for those asked for:

    states [T, d] -> norm -> keys, values [T]            queries [n], put back among T for the attention [T]
                                                         its output, feed-forward, residuals [n + filler, d]

The model's own modules do the arithmetic; arranged is which rows they see. Adapters find the chosen tokens' segments in a layout of
their own, filled up as any other (`layout.py`), so that nothing depends on neighbours; and it is always done, whatever share of
tokens is asked for, so that a trial's bits never depend on that choice. Attention itself is as before: a span's rows may predict
at different places, and in rows of 30 tokens it is a hundredth of a layer's work.
Knows decoder layers by their class; any other is computed whole. Cost: six copies of [T, d] at most, for which all but 2 of 7
products of a layer are left out at every other token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sweeper.engine.layout import Current, Layout, Segment, filler

_HOME = "transformers.models."


class Chosen:
    """Tokens `places` (int64 [n], rising) of `layout`, and filler after them."""

    def __init__(self, layout: Layout, places: Tensor, spare: int) -> None:
        self.places = places.to(layout.ids.device)
        self.count = len(places)
        self.total = len(layout.ids)
        self._fill = filler(self.count, spare)
        self.layout = Layout(
            ids=self._filled(layout.ids[self.places]),
            positions=self._filled(layout.positions[self.places]),
            segments=_segments(layout, places),
            spans=(),  # attention never sees these
            starts=(),
            rows=(),
        )

    def pick(self, x: Tensor) -> Tensor:
        """x [1, T, ...] -> [1, n + filler, ...], zeros for the filler."""
        return self._filled(x.squeeze(0).index_select(0, self.places))[None]

    def put_back(self, x: Tensor) -> Tensor:
        """x [1, n + filler, d] -> [1, T, d], zeros for every other token."""
        return x.new_zeros(self.total, x.shape[2]).index_copy(0, self.places, x[0, : self.count])[None]

    def _filled(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0) * (x.ndim - 1) + (0, self._fill)) if self._fill > 0 else x


def _segments(layout: Layout, places: Tensor) -> tuple[Segment, ...]:
    """The segments of the chosen tokens among themselves; none for a chunk of which nothing is asked."""
    bounds = torch.tensor([edge for s in layout.segments for edge in (s.start, s.end)])
    edges = iter(torch.searchsorted(places.cpu(), bounds).tolist())
    pairs = [(next(edges), next(edges)) for _ in layout.segments]
    return tuple(Segment(s.slot, start, end, s.seed) for s, (start, end) in zip(layout.segments, pairs, strict=True) if start < end)


@contextmanager
def last_layer_at(backbone: Any, current: Current, layout: Layout, places: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    """While open, the last of `backbone.layers` gives states of `places` (int64 [n], rising) alone, if its class is known.

    Yields what takes the backbone's last hidden states, [T, d] or fewer, to those of `places` [n, d].
    """
    layer = backbone.layers[-1]
    narrow = _narrow(layer)
    if narrow is None:
        yield lambda hidden: hidden[places.to(hidden.device)]
        return
    chosen = Chosen(layout, places, current.spare)
    # The instance's own attribute stands before the class's method, for as long as it is there.
    layer.forward = partial(_forward, narrow, layer, current, chosen)
    try:
        yield lambda hidden: hidden[: chosen.count]
    finally:
        del layer.forward


def reads_fewer(backbone: Any) -> Any | None:
    """The linear layer that reads fewer tokens than those beside it, which read one input otherwise: a last layer's queries."""
    layer = backbone.layers[-1]
    return layer.self_attn.q_proj if _narrow(layer) is _llama else None


_Narrow = Callable[..., Tensor]


def _forward(narrow: _Narrow, layer: Any, current: Current, chosen: Chosen, hidden_states: Tensor, **arguments: Any) -> Tensor:
    """As transformers' GradientCheckpointingLayer calls a layer; what is recomputed finds its layouts here again."""
    run = partial(narrow, layer, current, chosen, **arguments)
    if layer.gradient_checkpointing and layer.training:
        recomputed: Tensor = layer._gradient_checkpointing_func(run, hidden_states)
        return recomputed
    return run(hidden_states)


def _llama(layer: Any, current: Current, chosen: Chosen, hidden: Tensor, **arguments: Any) -> Tensor:
    """hidden [1, T, d] -> [1, n + filler, d], as LlamaDecoderLayer has it."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    with _only_chosen(attention.q_proj, current, chosen, before=True), _only_chosen(attention.o_proj, current, chosen):
        attended = attention(hidden_states=normed, **arguments)[0]
    states = chosen.pick(hidden) + attended
    with current.at(chosen.layout):
        fed: Tensor = layer.mlp(layer.post_attention_layernorm(states))
    out: Tensor = states + fed
    return out


def _neox(layer: Any, current: Current, chosen: Chosen, hidden: Tensor, **arguments: Any) -> Tensor:
    """hidden [1, T, d] -> [1, n + filler, d], as GPTNeoXLayer has it. Query, key and value are one product, of all tokens."""
    attention = layer.attention
    with _only_chosen(attention.dense, current, chosen):
        attended = layer.post_attention_dropout(attention(layer.input_layernorm(hidden), **arguments)[0])
    states = chosen.pick(hidden)
    if not layer.use_parallel_residual:
        states = attended + states
    with current.at(chosen.layout):
        fed: Tensor = layer.post_mlp_dropout(layer.mlp(layer.post_attention_layernorm(states)))
    return fed + attended + states if layer.use_parallel_residual else fed + states


_KNOWN: Mapping[str, _Narrow] = {
    "LlamaDecoderLayer": _llama,
    "MistralDecoderLayer": _llama,
    "Qwen2DecoderLayer": _llama,
    "Qwen3DecoderLayer": _llama,
    "GPTNeoXLayer": _neox,
}


def _narrow(layer: Any) -> _Narrow | None:
    kind = type(layer)
    return _KNOWN.get(kind.__name__) if kind.__module__.startswith(_HOME) else None


@contextmanager
def _only_chosen(linear: Any, current: Current, chosen: Chosen, before: bool = False) -> Iterator[None]:
    """While open, `linear` takes all tokens and computes the chosen ones; with `before`, gives all back, zeros for the others."""
    own = linear.forward

    def forward(x: Tensor) -> Tensor:
        with current.at(chosen.layout):
            y: Tensor = own(chosen.pick(x))
        return chosen.put_back(y) if before else y

    linear.forward = forward
    try:
        yield
    finally:
        del linear.forward
