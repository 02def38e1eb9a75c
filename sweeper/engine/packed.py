"""A transformers model computed without padding: rows of several trials in one pass.

The model's own layers do the arithmetic; only its attention is replaced (`attention.py`), its linear layers may be
(`lora.py`), and its head is never called (`head.py`). What a trial reads from it (losses, label scores, decoded tokens) is here;
what it trains is in `lora_net.py` and `full.py`.
Does not know optimizers or budgets. Cost: the model's forward pass, its last layer (`last.py`) and logits only where a label is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sweeper.data.tokens import TokenRow
from sweeper.engine.attention import NAME, RowCache, attach
from sweeper.engine.head import best_tokens, head_losses, target_log_probs
from sweeper.engine.last import last_layer_at
from sweeper.engine.layout import Current, Layout, Part, RowInput, build
from sweeper.engine.model import linear_names, load_model, recompute_activations
from sweeper.engine.prefix import Prefix
from sweeper.engine.start import asked_bounds, shared
from sweeper.engine.steady import spare_rows

LabelIds = Sequence[Sequence[int]]
Prompts = Sequence[npt.NDArray[np.int32]]


@dataclass(frozen=True)
class Chunk:
    """Rows of one trial to train on. The loss is the sum over target tokens times `weight` (one over the batch's targets)."""

    slot: int
    rows: Sequence[TokenRow]
    weight: float
    smoothing: float
    seed: int  # of the dropout masks


class PackedModel:
    """The base model with its attention replaced. Raises ModelError if it cannot be loaded."""

    def __init__(self, folder: str, dtype: str, device: str, trust_remote_code: bool, checkpointing: bool) -> None:
        self.model: Any = load_model(folder, dtype, NAME, device, trust_remote_code)
        self.device = device
        self.current = Current()
        attach(self.model, self.current)
        if torch.device(device).type == "cpu":
            self.current.spare = spare_rows(self.model.get_submodule(path).weight.shape[0] for path in linear_names(self.model))
        self._backbone = self.model.base_model
        self.prefix: Prefix | None = None
        self.start: npt.NDArray[np.int32] = np.empty(0, np.int32)  # tokens that a study's rows begin with (`start.py`)
        self.vocabulary: int | None = None  # tokens that the head knows, where it is not all: who counts bytes counts logits apart
        self._checkpointing = checkpointing
        if checkpointing:
            recompute_activations(self.model)

    @property
    def head(self) -> Tensor:
        """The head's weight [V, d]."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight if self.vocabulary is None else weight[: self.vocabulary]

    def train(self, chunks: Sequence[Chunk], dropout: bool) -> list[float]:
        """Forward and backward of `chunks` together; returns each chunk's weighted loss. Gradients are added where they belong.

        Losses are summed over trials, never averaged, so that no gradient depends on a neighbour. `dropout` switches the
        model's own dropout on.
        """
        layout = self._layout([self._part(c.slot, c.rows, c.seed) for c in chunks])
        places, targets, counts = _targets(layout, [row for chunk in chunks for row in chunk.rows])
        per_chunk = _sums(counts, [len(chunk.rows) for chunk in chunks])
        scale, smoothing = (
            torch.repeat_interleave(torch.tensor(x, device=self.device), torch.tensor(per_chunk, device=self.device))
            for x in ([c.weight for c in chunks], [c.smoothing for c in chunks])
        )
        self.model.train(dropout or self._checkpointing)
        with self._states(layout, places) as hidden:
            losses = head_losses(hidden, self.head, targets.to(self.device), scale, smoothing)
            losses.sum().backward()  # type: ignore[no-untyped-call]
        return [float(part.double().sum().item()) for part in torch.split(losses.detach(), per_chunk)]

    @torch.no_grad()
    def losses(self, asked: Sequence[tuple[int, Sequence[TokenRow]]]) -> list[list[tuple[float, int]]]:
        """Summed -log p over the target tokens, and their number, of each row; for each (slot, rows) asked."""
        layout = self._layout([self._part(slot, rows) for slot, rows in asked])
        places, targets, counts = _targets(layout, [row for _, rows in asked for row in rows])
        values = target_log_probs(self._read(layout, places), self.head, targets.to(self.device))
        out = iter([(-float(part.double().sum().item()), len(part)) for part in torch.split(values, counts)])
        return [[next(out) for _ in rows] for _, rows in asked]

    @torch.no_grad()
    def score(self, asked: Sequence[tuple[int, Prompts]], labels: LabelIds) -> list[npt.NDArray[np.float32]]:
        """Sum of log p(label token | prompt, earlier label tokens) of every label, float32 [rows, labels]; for each (slot, rows).

        `labels` end with the end token; without it a label that begins another would always win. Each prompt is read once,
        with one branch per label: all its tokens but the last, whose own prediction is not asked.
        """
        prompts = [prompt for _, rows in asked for prompt in rows]
        tails = np.concatenate([np.asarray(label[:-1], np.int32) for label in labels]).astype(np.int32)
        branches = tuple(len(label) - 1 for label in labels)
        inputs = iter([RowInput(np.concatenate([prompt, tails]), branches if sum(branches) else ()) for prompt in prompts])
        layout = self._layout([Part(slot, [next(inputs) for _ in rows], shared=shared(self.start, rows)) for slot, rows in asked])
        # Read are the prompt's last token, once for all labels, and the branches; `within` is where each label token is predicted.
        begins = np.cumsum([1, *branches])[:-1]
        within = np.concatenate([[0, *range(at, at + length)] for at, length in zip(begins, branches, strict=True)])
        width = 1 + len(tails)
        last = np.array([start + len(prompt) - 1 for start, prompt in zip(layout.starts, prompts, strict=True)])
        index = torch.from_numpy((last[:, None] + np.arange(width)).ravel())
        at = torch.from_numpy((width * np.arange(len(prompts))[:, None] + within).ravel()).to(self.device)
        targets = torch.tensor([token for label in labels for token in label], device=self.device).repeat(len(prompts))
        values = target_log_probs(self._read(layout, index), self.head, targets, at).double().cpu().numpy()
        ends = np.cumsum([0, *(len(label) for label in labels)])
        scores = np.add.reduceat(values.reshape(len(prompts), -1), ends[:-1], axis=1).astype(np.float32)
        return np.split(scores, np.cumsum([len(rows) for _, rows in asked])[:-1])

    @torch.no_grad()
    def decode(self, asked: Sequence[tuple[int, Prompts]], max_new_tokens: int, end_id: int | None) -> list[list[list[int]]]:
        """Greedy continuation of each prompt: at most `max_new_tokens` tokens, ending before `end_id`; for each (slot, rows).

        Prompts are read slot by slot, as many tokens at once as for a slot alone; then all rows go on together.
        """
        cache = RowCache([len(prompt) + max_new_tokens for _, rows in asked for prompt in rows])
        owner = [part for part, (_, rows) in enumerate(asked) for _ in rows]
        out: list[list[int]] = [[] for _ in owner]

        def step(going: Sequence[int], inputs: Sequence[RowInput]) -> list[int]:
            """Feeds each row in `going`; those whose next token does not end them."""
            cache.active = list(going)
            parts = [
                Part(asked[part][0], [row for _, row in rows])
                for part, rows in groupby(zip(going, inputs, strict=True), key=lambda pair: owner[pair[0]])
            ]
            layout = self._layout(parts, cache)
            ends = [start + len(row.ids) - 1 for start, row in zip(layout.starts, inputs, strict=True)]
            chosen = best_tokens(self._read(layout, torch.tensor(ends)), self.head).tolist()
            cache.advance([len(row.ids) for row in inputs])
            left = [(row, token) for row, token in zip(going, chosen, strict=True) if token != end_id]
            for row, token in left:
                out[row].append(token)
            return [row for row, _ in left]

        going: list[int] = []
        first = 0
        for _, rows in asked if max_new_tokens > 0 else ():
            going += step(range(first, first + len(rows)), [RowInput(prompt) for prompt in rows])
            first += len(rows)
        for _ in range(max_new_tokens - 1):
            if not going:
                break
            going = step(going, [RowInput(np.array(out[row][-1:], np.int32), start=cache.lengths[row]) for row in going])
        answers = iter(out)
        return [[next(answers) for _ in rows] for _, rows in asked]

    def _part(self, slot: int, rows: Sequence[TokenRow], seed: int | None = None) -> Part:
        bounds = [asked_bounds(row) for row in rows]
        count = shared(self.start, [row.ids[:first] for row, (first, _) in zip(rows, bounds, strict=True)])
        return Part(slot, [RowInput(row.ids[:last]) for row, (_, last) in zip(rows, bounds, strict=True)], seed, count)

    def _layout(self, parts: Sequence[Part], cache: RowCache | None = None) -> Layout:
        return build(parts, self.device, cache, self.current.spare)

    def _read(self, layout: Layout, places: Tensor) -> Tensor:
        """Last hidden states [n, d] of tokens `places` (int64 [n], rising) in eval mode."""
        self.model.eval()
        with self._states(layout, places) as hidden:
            return hidden

    @contextmanager
    def _states(self, layout: Layout, places: Tensor) -> Iterator[Tensor]:
        """Last hidden states [n, d] of tokens `places`. A backward pass belongs inside: layers it recomputes look for `layout`."""
        with self.current.at(layout), last_layer_at(self._backbone, self.current, layout, places) as at_places:
            if self.prefix is not None and layout.cache is None:
                yield at_places(self.prefix.hidden(layout))
            else:
                out = self._backbone(input_ids=layout.ids[None], position_ids=layout.positions[None], use_cache=False)
                yield at_places(out.last_hidden_state[0])


def _targets(layout: Layout, rows: Sequence[TokenRow]) -> tuple[Tensor, Tensor, list[int]]:
    """Places in the layout whose hidden state predicts a target, the targets (both int64 [n]), and how many each row has."""
    places: list[npt.NDArray[np.int64]] = []
    targets: list[npt.NDArray[np.int32]] = []
    for start, row in zip(layout.starts, rows, strict=True):
        before = np.flatnonzero(row.target[1:])
        places.append(before + start)
        targets.append(row.ids[before + 1])
    index = torch.from_numpy(np.concatenate(places).astype(np.int64))
    return index, torch.from_numpy(np.concatenate(targets).astype(np.int64)), [len(p) for p in places]


def _sums(counts: Sequence[int], groups: Sequence[int]) -> list[int]:
    """Sums of `counts` over neighbouring groups of the given sizes."""
    ends = np.cumsum(groups)
    return [int(sum(counts[end - size : end])) for end, size in zip(ends, groups, strict=True)]
