"""Full fine-tuning on packed rows: every weight of the model is trained, one trial at a time.

Batches, losses, evaluation and checkpoints are those of LoRA; only what is trained differs. Weight decay acts on all parameters,
as torch.optim.AdamW does unless told otherwise. `dropout` is the model's own (`dropout.py`).
Memory: 20 bytes a parameter in fp32 (weights, gradient, two moments, the untouched base for the next trial).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sweeper.data.tokens import TokenRow
from sweeper.engine.base import EngineSetup
from sweeper.engine.binding import Binding
from sweeper.engine.dropout import seeded, set_dropout
from sweeper.engine.export import save_model
from sweeper.engine.optimizer import Row
from sweeper.engine.packed import Chunk, LabelIds, PackedModel, Prompts
from sweeper.engine.params import Params
from sweeper.errors import ModelError


class FullNet:
    """Implements `net.Net` with one slot."""

    most_slots: int | None = 1

    def __init__(self, setup: EngineSetup) -> None:
        require_one_slot(setup, "full fine-tuning")
        training = setup.training
        self._packed = PackedModel(
            setup.model, training.dtype, setup.device, setup.trust_remote_code, training.gradient_checkpointing
        )
        self._folder = Path(setup.model)
        self._parameters = list(self._packed.model.parameters())
        self._base: list[Tensor] = []
        self._binding: Binding | None = None
        self._dropout = 0.0

    def begin_with(self, start: npt.NDArray[np.int32]) -> None:
        self._packed.start = start

    def place(self, slot: int, params: Params, seed: int) -> Row:
        # Copied when the first trial comes: a model that only predicts needs no second one.
        self._base = self._base or [p.detach().clone() for p in self._parameters]
        with torch.no_grad():
            for p, base in zip(self._parameters, self._base, strict=True):
                p.copy_(base)
        self._dropout = params.dropout
        set_dropout(self._packed.model, params.dropout)
        self._binding = Binding(self._parameters)
        return self._binding.row

    def updated(self, slot: int) -> None:
        self._bound().push()

    def remove(self, slot: int) -> None:
        self._binding = None

    def train(self, chunks: Sequence[Chunk]) -> list[float]:
        losses: list[float] = []
        try:
            for chunk in chunks:  # one by one: the model's own dropout draws, and sums of gradients, run over a whole pass
                with seeded(chunk.seed, self._packed.device):
                    losses += self._packed.train([chunk], dropout=self._dropout > 0)
            return losses
        finally:
            # After a failure as well: whoever tries again clears the row, and nothing may be left beside it.
            self._bound().collect()

    def losses(self, asked: Sequence[tuple[int, Sequence[TokenRow]]]) -> list[list[tuple[float, int]]]:
        return self._packed.losses(asked)

    def score(self, asked: Sequence[tuple[int, Prompts]], labels: LabelIds) -> list[npt.NDArray[np.float32]]:
        return self._packed.score(asked, labels)

    def decode(self, asked: Sequence[tuple[int, Prompts]], max_new_tokens: int, end_id: int | None) -> list[list[list[int]]]:
        return self._packed.decode(asked, max_new_tokens, end_id)

    def export(self, slot: int) -> Mapping[str, bytes]:
        return model_files(self._packed.model, self._folder)

    def _bound(self) -> Binding:
        if self._binding is None:
            raise RuntimeError("no trial is placed")
        return self._binding


def require_one_slot(setup: EngineSetup, what: str) -> None:
    """Raises ModelError if the setup asks for several slots or a stored base, where every trial needs the model for itself."""
    if setup.slots not in (0, 1):
        raise ModelError(f"{what} trains one trial per worker, but {setup.slots} slots were asked for; use executor.kind: tune")
    if setup.training.base != "full":
        raise ModelError(f"training.base is {setup.training.base!r}, but {what} needs the base as it is; leave training.base out")


def model_files(model: object, folder: Path) -> dict[str, bytes]:
    """`model` as the files of a folder that transformers loads, tokenizer included."""
    with tempfile.TemporaryDirectory() as temporary:
        save_model(model, folder, Path(temporary))
        return {file.name: file.read_bytes() for file in sorted(Path(temporary).iterdir())}
