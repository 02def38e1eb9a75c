"""`training.layers: last N`: the frozen layers below are run once a row, not once a trial and epoch.

What enters the first layer with adapters depends on a row's tokens and the frozen weights alone, so it is kept on the node's disk
(`state_store.py`, below SWEEPER_CACHE) and read by all trials, epochs and engines there. A row is known by its tokens and
branches: one that is scored with its labels beside it is kept apart from the same one that is trained on. Decoding runs the
whole model. What is read equals what would be computed, to the bit where a row's result does not depend on its neighbours
(CPU, fp32, one thread; `layout.py`).
The key of a cache is the frozen weights' own digest with whatever else decides the states: config, dtype, storage, depth, versions,
device, threads, node.
Memory: none beyond the states of a pass. Disk: 4 bytes x hidden size a token, at most `EngineSetup.prefix_bytes`; beyond that
rows are computed anew. Time: a digest of the weights at the start (0.6 s a gigabyte), then a copy in place of a forward pass. On
135M parameters of which the last 10 layers of 30 carry adapters, four trials took 0.62 of the time (one core; `python -m
benchmarks.prefix`), a third of what adapters on all layers take.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from sweeper.engine.base import EngineSetup
from sweeper.engine.layout import Current, Layout, Part, RowInput, build
from sweeper.engine.node import cache_root
from sweeper.engine.state_store import StateStore, make_room
from sweeper.errors import ResourceError

FORMAT = 2  # raised when the same key would mean other states

log = logging.getLogger(__name__)


class Prefix:
    """The model's layers below the last `count`, run without gradients, and what they gave for the rows of `store`.

    `current` is where the model's attention finds its layout. Without a store everything is computed.
    """

    def __init__(self, model: Any, count: int, current: Current, device: str, store: StateStore | None) -> None:
        self._backbone: Any = model.base_model
        layers = list(self._backbone.layers)
        self._below, self._above = layers[: len(layers) - count], nn.ModuleList(layers[len(layers) - count :])
        self._embed = model.get_input_embeddings()
        self._current, self._device = current, device
        self.store = store

    def hidden(self, layout: Layout) -> Tensor:
        """Last hidden states [T, d] of `layout`, which the model is at."""
        states = self.states(layout)
        with self._only_above():
            out = self._backbone(inputs_embeds=states[None], position_ids=layout.positions[None], use_cache=False)
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    @torch.no_grad()
    def states(self, layout: Layout) -> Tensor:
        """What enters the first layer with adapters, fp32 [T, d]; zero for tokens of no trial."""
        keys = [row_key(row) for row in layout.rows]
        found = {key: None if self.store is None else self.store.get(key) for key in keys}
        missing = {key: row for key, row in zip(keys, layout.rows, strict=True) if found[key] is None}
        computed = self._compute(missing)
        states = np.zeros((len(layout.ids), self._embed.weight.shape[1]), np.float32)
        for key, row, start in zip(keys, layout.rows, layout.starts, strict=True):
            kept = found[key]
            states[start : start + len(row.ids)] = computed[key] if kept is None else kept
        if self.store is not None:
            self.store.put(computed.items())
        return torch.from_numpy(states).to(self._device)

    def _compute(self, rows: Mapping[bytes, RowInput]) -> dict[bytes, Any]:
        """States float32 [tokens, d] of each row, by one pass through the layers below."""
        if not rows:
            return {}
        ordered = sorted(rows.items(), key=lambda item: (len(item[1].ids), item[1].branches))
        layout = build([Part(0, [row for _, row in ordered])], self._device, spare=self._current.spare)
        with self._current.at(layout):
            hidden = self._run(layout).cpu().numpy()
        return {key: hidden[at : at + len(row.ids)] for (key, row), at in zip(ordered, layout.starts, strict=True)}

    def _run(self, layout: Layout) -> Tensor:
        hidden: Tensor = self._embed(layout.ids[None])
        positions = layout.positions[None]
        rotary = self._backbone.rotary_emb(hidden, position_ids=positions)
        for layer in self._below:
            hidden = layer(hidden, attention_mask=None, position_ids=positions, position_embeddings=rotary, use_cache=False)
        return hidden[0]

    @contextmanager
    def _only_above(self) -> Iterator[None]:
        every = self._backbone.layers
        self._backbone.layers = self._above
        try:
            yield
        finally:
            self._backbone.layers = every


def open_prefix(model: Any, setup: EngineSetup, current: Current) -> Prefix | None:
    """The prefix for `setup.training.layers`; None where every layer carries adapters. To be called while weights are as loaded.

    Where the node's cache cannot be written, it computes, and says so in the log.
    """
    count = setup.training.last_layers()
    if count is None or count >= len(model.base_model.layers):
        return None
    store: StateStore | None = None
    if setup.prefix_bytes != 0:
        name, root = fingerprint(model, count, setup), cache_folder()
        try:
            room = make_room(root, name)
            limit = room if setup.prefix_bytes is None else setup.prefix_bytes
            store = StateStore(root / name, int(model.get_input_embeddings().weight.shape[1]), limit)
        except (OSError, ResourceError) as error:
            log.warning("the frozen layers are run for every row, because their results cannot be kept: %s", error)
    return Prefix(model, count, current, setup.device, store)


def cache_folder() -> Path:
    """Where this node keeps hidden states: `prefix` below SWEEPER_CACHE, by default ~/.cache/sweeper."""
    return cache_root() / "prefix"


def row_key(row: RowInput) -> bytes:
    """16 bytes that stand for a row's tokens, positions and branches."""
    shape = np.array([row.start, len(row.ids), *row.branches], np.int64)
    return hashlib.blake2b(shape.tobytes() + row.ids.astype(np.int32).tobytes(), digest_size=16).digest()


def fingerprint(model: Any, count: int, setup: EngineSetup) -> str:
    """32 hex digits that stand for all that decides the states entering the last `count` layers of `model`."""
    backbone = model.base_model
    below = list(backbone.layers)[: len(backbone.layers) - count]
    facts = {
        "format": FORMAT,
        "config": {key: value for key, value in model.config.to_dict().items() if not key.startswith("_")},
        "class": type(model).__name__,
        "depth": len(below),
        "dtype": setup.training.dtype,
        "base": setup.training.base,
        "threads": setup.threads,
        "device": _device(setup.device),
        "node": platform.node(),
        "versions": [torch.__version__, transformers.__version__],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for module in (model.get_input_embeddings(), *below):
        _digest(digest, module)
    return digest.hexdigest()[:32]


def _digest(digest: Any, module: nn.Module) -> None:
    tensors: Sequence[tuple[str, Tensor]] = [*module.named_parameters(), *module.named_buffers()]
    for name, tensor in tensors:
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def _device(device: str) -> str:
    kind = torch.device(device)
    if kind.type == "cuda":
        return torch.cuda.get_device_name(kind)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
