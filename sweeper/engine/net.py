"""What the engine trains, seen from the engine: slots with weights in them, and five things to do with them.

Three exist: `lora_net.LoraNet` (packed, many slots), `full.FullNet` (packed rows, one slot, every weight) and
`peft_net.PlainNet` (any architecture by transformers' and peft's own layers, padded, one slot). `build_net` picks.
Does not know budgets, schedules, metrics or checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sweeper.data.tokens import TokenRow
from sweeper.engine.base import EngineSetup
from sweeper.engine.optimizer import Row
from sweeper.engine.packed import Chunk, LabelIds, Prompts
from sweeper.engine.params import Params


class Net(Protocol):
    """A base model with room for trials. Not thread-safe.

    What is asked for several slots at once shares a pass where the net can, and gives each the same bits as asked alone.
    """

    most_slots: int | None  # trials at once; None: as many as memory has room for

    def begin_with(self, start: npt.NDArray[np.int32]) -> None:
        """All rows to come begin with the tokens `start` [S], which may be computed once for several of a trial's rows."""
        ...

    def place(self, slot: int, params: Params, seed: int) -> Row:
        """Puts a new trial's weights, drawn from `seed`, into `slot`. Raises ModelError if its targets name no layer."""
        ...

    def updated(self, slot: int) -> None:
        """The slot's row changed (a step, or loaded): what is made from it is made anew."""
        ...

    def remove(self, slot: int) -> None:
        """Empties `slot`; nothing of it is left."""
        ...

    def train(self, chunks: Sequence[Chunk]) -> list[float]:
        """Adds the gradients of `chunks` to their rows; returns each chunk's weighted loss."""
        ...

    def losses(self, asked: Sequence[tuple[int, Sequence[TokenRow]]]) -> list[list[tuple[float, int]]]:
        """Summed -log p over the target tokens, and their number, of each row; for each (slot, rows) asked."""
        ...

    def score(self, asked: Sequence[tuple[int, Prompts]], labels: LabelIds) -> list[npt.NDArray[np.float32]]:
        """log p of every label (its end token included) after every prompt, float32 [rows, labels] for each (slot, rows) asked."""
        ...

    def decode(self, asked: Sequence[tuple[int, Prompts]], max_new_tokens: int, end_id: int | None) -> list[list[list[int]]]:
        """Greedy continuation of each prompt, ending before `end_id`; for each (slot, rows) asked."""
        ...

    def export(self, slot: int) -> Mapping[str, bytes]:
        """The slot's weights as files that others read: a PEFT adapter, or a model folder."""
        ...


def build_net(setup: EngineSetup) -> Net:
    """The net for a study's method and architecture. Raises ModelError if the setup asks for what it cannot do."""
    from sweeper.engine.full import FullNet
    from sweeper.engine.lora_net import LoraNet
    from sweeper.engine.model import knows, load_config

    if not knows(load_config(setup.model, setup.trust_remote_code)):
        from sweeper.engine.peft_net import PlainNet  # the import of peft takes a second, and nobody else needs it

        return PlainNet(setup)
    return LoraNet(setup) if setup.training.method == "lora" else FullNet(setup)
