"""Any causal language model, by transformers' and peft's own layers: what the packed engine does not know.

Rows are padded on the right (on the left for decoding) and masked; otherwise a trial means the same as in the packed net: same
rows, losses, optimizer, clocks. One trial at a time. With LoRA the model's own dropout is off, and `dropout` is peft's.
Cost: the padding, and all logits of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from sweeper.data.tokens import TokenRow
from sweeper.engine.base import EngineSetup
from sweeper.engine.binding import Binding
from sweeper.engine.dropout import seeded, set_dropout
from sweeper.engine.export import adapter_files
from sweeper.engine.full import model_files, require_one_slot
from sweeper.engine.model import linear_names, load_model, recompute_activations
from sweeper.engine.optimizer import Row
from sweeper.engine.packed import Chunk, LabelIds, Prompts
from sweeper.engine.params import Params
from sweeper.engine.seeds import mix
from sweeper.engine.targets import resolve_targets

_ADAPTER = "default"


class PlainNet:
    """Implements `net.Net` with one slot."""

    most_slots: int | None = 1

    def __init__(self, setup: EngineSetup) -> None:
        require_one_slot(setup, "a model that the packed engine does not know")
        training = setup.training
        self._base: Any = load_model(setup.model, training.dtype, "sdpa", setup.device, setup.trust_remote_code)
        if training.gradient_checkpointing:
            recompute_activations(self._base)
            self._base.enable_input_require_grads()
        self._setup = setup
        self._device = setup.device
        self._lora = training.method == "lora"
        self._linears = linear_names(self._base)
        self._last = training.last_layers()
        self._untouched: list[Tensor] = []
        self._model: Any = self._base
        self._binding: Binding | None = None
        self._params: Params | None = None
        self._paths: tuple[str, ...] = ()

    def begin_with(self, start: npt.NDArray[np.int32]) -> None:
        """Nothing: rows are padded, and computed whole."""

    def place(self, slot: int, params: Params, seed: int) -> Row:
        if self._lora:
            self._wrap(params, seed)
        else:
            # Copied when the first trial comes: a model that only predicts needs no second one.
            self._untouched = self._untouched or [p.detach().clone() for p in self._base.parameters()]
            with torch.no_grad():
                for p, value in zip(self._base.parameters(), self._untouched, strict=True):
                    p.copy_(value)
            self._base.requires_grad_(True)
        set_dropout(self._base, 0.0 if self._lora else params.dropout)
        self._binding = Binding([p for p in self._model.parameters() if p.requires_grad])
        self._params = params
        return self._binding.row

    def _wrap(self, params: Params, seed: int) -> None:
        self._paths = resolve_targets(params.targets, self._base.config.model_type, self._linears, self._last)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=params.rank,
            lora_alpha=params.alpha,
            lora_dropout=params.dropout,
            target_modules=list(self._paths),
            fan_in_fan_out=self._conv1d(),
        )
        with seeded(mix(seed, 2), self._device):
            self._model = get_peft_model(self._base, config)

    def _conv1d(self) -> bool:
        return bool(self._paths) and isinstance(self._base.get_submodule(self._paths[0]), Conv1D)

    def updated(self, slot: int) -> None:
        self._bound().push()

    def remove(self, slot: int) -> None:
        if self._lora and self._model is not self._base:
            self._base = self._model.unload()
            # unload leaves the config behind, and the next wrap would warn of a second adapter.
            if hasattr(self._base, "peft_config"):
                del self._base.peft_config
        self._model = self._base
        self._binding = None

    def train(self, chunks: Sequence[Chunk]) -> list[float]:
        self._model.train()
        losses: list[float] = []
        try:
            for chunk in chunks:
                with seeded(chunk.seed, self._device):
                    logits, targets = self._targets(chunk.rows)
                    loss = chunk.weight * F.cross_entropy(logits, targets, label_smoothing=chunk.smoothing, reduction="sum")
                    loss.backward()  # type: ignore[no-untyped-call]
                losses.append(float(loss.detach()))
        finally:
            # After a failure as well: whoever tries again clears the row, and nothing may be left beside it.
            self._bound().collect()
        return losses

    def losses(self, asked: Sequence[tuple[int, Sequence[TokenRow]]]) -> list[list[tuple[float, int]]]:
        return [self._losses(rows) for _, rows in asked]

    @torch.no_grad()
    def _losses(self, rows: Sequence[TokenRow]) -> list[tuple[float, int]]:
        self._model.eval()
        logits, targets = self._targets(rows)
        values = F.cross_entropy(logits, targets, reduction="none").double()
        counts = [int(np.count_nonzero(row.target[1:])) for row in rows]
        return [(float(part.sum()), len(part)) for part in torch.split(values, counts)]

    def score(self, asked: Sequence[tuple[int, Prompts]], labels: LabelIds) -> list[npt.NDArray[np.float32]]:
        return [self._score(prompts, labels) for _, prompts in asked]

    def _score(self, prompts: Prompts, labels: LabelIds) -> npt.NDArray[np.float32]:
        out = np.empty((len(prompts), len(labels)), np.float32)
        for i, prompt in enumerate(prompts):
            rows = [_completed(prompt, label) for label in labels]
            out[i] = [-loss for loss, _ in self._losses(rows)]
        return out

    def decode(self, asked: Sequence[tuple[int, Prompts]], max_new_tokens: int, end_id: int | None) -> list[list[list[int]]]:
        return [self._decode(prompts, max_new_tokens, end_id) for _, prompts in asked]

    @torch.no_grad()
    def _decode(self, prompts: Prompts, max_new_tokens: int, end_id: int | None) -> list[list[int]]:
        self._model.eval()
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            ids[i, longest - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
            mask[i, longest - len(prompt) :] = 1
        made = self._model.generate(
            input_ids=ids.to(self._device),
            attention_mask=mask.to(self._device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=end_id,
            pad_token_id=end_id if end_id is not None else 0,
        )
        return [_until(row[longest:], end_id) for row in made.tolist()]

    def export(self, slot: int) -> Mapping[str, bytes]:
        if not self._lora:
            return model_files(self._base, Path(self._setup.model))
        assert self._params is not None
        pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for path in self._paths:
            layer = self._base.get_submodule(path)
            pairs[path] = (layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight)
        conv1d = isinstance(self._base.get_submodule(self._paths[0]).get_base_layer(), Conv1D)
        linears = None if self._last is None else self._linears
        return adapter_files(pairs, self._params, self._setup.base_name or self._setup.model, conv1d, linears)

    def load(self, slot: int, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Fills A and B of each layer path, e.g. from a PEFT adapter."""
        with torch.no_grad():
            for path in self._paths:
                layer = self._base.get_submodule(path)
                layer.lora_A[_ADAPTER].weight.copy_(pairs[path][0])
                layer.lora_B[_ADAPTER].weight.copy_(pairs[path][1])

    def _targets(self, rows: Sequence[TokenRow]) -> tuple[Tensor, Tensor]:
        """fp32 logits [n, V] before each target token of `rows`, and the targets int64 [n], row after row."""
        longest = max(len(row.ids) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        wanted = torch.zeros(len(rows), longest, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.from_numpy(row.ids.astype(np.int64))
            mask[i, : len(row.ids)] = 1
            wanted[i, 1 : len(row.ids)] = torch.from_numpy(row.target[1:].copy())
        ids, wanted = ids.to(self._device), wanted.to(self._device)
        logits = self._model(input_ids=ids, attention_mask=mask.to(self._device), use_cache=False).logits
        return logits[:, :-1][wanted[:, 1:]].float(), ids[wanted]

    def _bound(self) -> Binding:
        if self._binding is None:
            raise RuntimeError("no trial is placed")
        return self._binding


def _completed(prompt: npt.NDArray[np.int32], label: Sequence[int]) -> TokenRow:
    target = np.zeros(len(prompt) + len(label), np.bool_)
    target[len(prompt) :] = True
    return TokenRow(np.concatenate([prompt, np.asarray(label, np.int32)]), target, len(prompt), -1)


def _until(tokens: Sequence[int], end_id: int | None) -> list[int]:
    out = list(tokens)
    return out[: out.index(end_id)] if end_id is not None and end_id in out else out
