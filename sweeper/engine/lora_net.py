"""Many trials' LoRA adapters on one frozen base: the packed net.

A slot's adapter is a flat fp32 row (`optimizer.Row`) whose views stand as A [r, in] and B's transpose [r, out] in the target
layers, whatever the base is stored in. Trials may differ in rank, alpha, targets and dropout.
Memory: a slot takes 16 bytes a trainable number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sweeper.data.tokens import TokenRow
from sweeper.engine.base import EngineSetup
from sweeper.engine.dropout import set_dropout
from sweeper.engine.export import adapter_files
from sweeper.engine.frozen import freeze
from sweeper.engine.last import reads_fewer
from sweeper.engine.lora import Adapter, Group, LoraLinear, initial_bound
from sweeper.engine.masks import dropout_level
from sweeper.engine.model import linear_names
from sweeper.engine.norm import freeze_norms
from sweeper.engine.optimizer import Row, views
from sweeper.engine.packed import Chunk, LabelIds, PackedModel, Prompts
from sweeper.engine.params import Params
from sweeper.engine.prefix import open_prefix
from sweeper.engine.seeds import mix
from sweeper.engine.steady import is_steady
from sweeper.engine.targets import resolve_targets

_SAME_INPUT: Mapping[str, str] = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate_up", "up_proj": "gate_up"}
"""Layers of one module that read the same input, in every family that is known."""


@dataclass(frozen=True)
class _Placed:
    params: Params
    paths: tuple[str, ...]
    row: Row


class LoraNet:
    """Implements `net.Net` with any number of slots."""

    most_slots: int | None = None

    def __init__(self, setup: EngineSetup) -> None:
        training = setup.training
        self._packed = PackedModel(
            setup.model, training.dtype, setup.device, setup.trust_remote_code, training.gradient_checkpointing
        )
        set_dropout(self._packed.model, 0.0)  # recomputing activations puts the model into training mode
        self._base_name = setup.base_name or setup.model
        self._packed.prefix = open_prefix(self._packed.model, setup, self._packed.current)
        self._last = training.last_layers()
        freeze_norms(self._packed.model)
        self._layers = self._replace_linears(training.base)
        self._placed: dict[int, _Placed] = {}

    def _replace_linears(self, base: str) -> dict[str, LoraLinear]:
        model = self._packed.model
        anchor = torch.empty(0, device=self._packed.device, requires_grad=True)
        fewer = reads_fewer(model.base_model)
        layers: dict[str, LoraLinear] = {}
        groups: dict[str, list[LoraLinear]] = {}
        for path in linear_names(model):
            parent, _, name = path.rpartition(".")
            linear = model.get_submodule(path)
            layers[path] = LoraLinear(freeze(linear, base))
            setattr(model.get_submodule(parent), name, layers[path])
            group = name if linear is fewer else _SAME_INPUT.get(name, name)
            groups.setdefault(f"{parent}.{group}", []).append(layers[path])
        for index, members in enumerate(groups.values()):
            Group(members, self._packed.current, index, anchor)
        return layers

    def begin_with(self, start: npt.NDArray[np.int32]) -> None:
        # Where the frozen layers' states are kept, what a row has in common with others was computed already.
        if self._packed.prefix is None:
            self._packed.start = start

    def place(self, slot: int, params: Params, seed: int) -> Row:
        paths = self.paths(params)
        row = Row(self.trainable(params), self._packed.device)
        placed = self._placed[slot] = _Placed(params, paths, row)
        self._draw(placed, seed)
        self._bind(slot, placed)
        return row

    def updated(self, slot: int) -> None:
        """Nothing to do: the layers read views of the row."""

    def remove(self, slot: int) -> None:
        for path in self._placed.pop(slot).paths:
            del self._layers[path].adapters[slot]

    def train(self, chunks: Sequence[Chunk]) -> list[float]:
        return self._packed.train(chunks, dropout=False)

    def losses(self, asked: Sequence[tuple[int, Sequence[TokenRow]]]) -> list[list[tuple[float, int]]]:
        return self._packed.losses(asked)

    def score(self, asked: Sequence[tuple[int, Prompts]], labels: LabelIds) -> list[npt.NDArray[np.float32]]:
        return self._packed.score(asked, labels)

    def decode(self, asked: Sequence[tuple[int, Prompts]], max_new_tokens: int, end_id: int | None) -> list[list[list[int]]]:
        return self._packed.decode(asked, max_new_tokens, end_id)

    def export(self, slot: int) -> Mapping[str, bytes]:
        placed = self._placed[slot]
        flat = self._split(placed, placed.row.weights)
        pairs = {path: (flat[2 * i], flat[2 * i + 1].t().contiguous()) for i, path in enumerate(placed.paths)}
        linears = None if self._last is None else list(self._layers)
        return adapter_files(pairs, placed.params, self._base_name, linears=linears)

    def load(self, slot: int, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Fills the slot's A and B of each layer path, e.g. from a PEFT adapter. Paths are those that `place` chose."""
        placed = self._placed[slot]
        flat = self._split(placed, placed.row.weights)
        for i, path in enumerate(placed.paths):
            flat[2 * i].copy_(pairs[path][0])
            flat[2 * i + 1].copy_(pairs[path][1].t())

    @property
    def packed(self) -> PackedModel:
        """The base model, for those that measure it."""
        return self._packed

    @property
    def depth(self) -> int:
        """Layers that a pass of training goes through: the last ones, where the others' results are kept."""
        every = len(self._packed.model.base_model.layers)
        return every if self._packed.prefix is None or self._last is None else self._last

    def paths(self, params: Params) -> tuple[str, ...]:
        """Paths of the layers that a trial's adapter would stand in. Raises ModelError if its targets name none."""
        return resolve_targets(params.targets, self._packed.model.config.model_type, list(self._layers), self._last)

    def trainable(self, params: Params) -> int:
        """Numbers that such a trial trains."""
        return sum(a * b for path in self.paths(params) for a, b in self._shapes(path, params.rank))

    def is_steady(self) -> bool:
        """Whether a row's products here do not depend on its neighbours (`steady.py`)."""
        return is_steady((layer.frozen for layer in self._layers.values()), self._packed.head)

    def nbytes(self) -> int:
        """Bytes of the frozen linear layers."""
        return sum(layer.frozen.nbytes() for layer in self._layers.values())

    def _shapes(self, path: str, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
        frozen = self._layers[path].frozen
        return (rank, frozen.in_features), (rank, frozen.out_features)

    def _split(self, placed: _Placed, flat: Tensor) -> list[Tensor]:
        """A and B's transpose of each target layer, in order, as views of `flat` [P]."""
        return views(flat, [shape for path in placed.paths for shape in self._shapes(path, placed.params.rank)])

    def _draw(self, placed: _Placed, seed: int) -> None:
        """A from its uniform start, B zero. Drawn on the CPU, so that every device starts alike."""
        generator = torch.Generator().manual_seed(mix(seed, 2))
        for down in self._split(placed, placed.row.weights)[::2]:
            bound = initial_bound(down.shape[1])
            down.copy_(torch.rand(down.shape, generator=generator) * (2 * bound) - bound)

    def _bind(self, slot: int, placed: _Placed) -> None:
        weights = self._split(placed, placed.row.weights)
        gradient = self._split(placed, placed.row.gradient)
        for i, path in enumerate(placed.paths):
            self._layers[path].adapters[slot] = Adapter(
                down=weights[2 * i],
                up=weights[2 * i + 1],
                down_gradient=gradient[2 * i],
                up_gradient=gradient[2 * i + 1],
                scale=placed.params.alpha / placed.params.rank,
                dropout=dropout_level(placed.params.dropout),
            )
