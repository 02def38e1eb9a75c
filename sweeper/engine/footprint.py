"""What an engine takes of its device's memory: the base, each slot, each token of a pass; and how much there is.

    forecast = base + slots * slot + (fixed + tokens * token + min(targets, SLICE) * target) * overhead

`base` is the process with the model (on a GPU what is allocated there). A slot is 16 bytes a trainable number, 20 where the best
weights are kept, of the heaviest trial that the space holds. Activations are counted on passes through two slices of the model, at
two sizes each: exactly, by the bytes of all tensors alive at once on the CPU, by the allocator on a GPU; so the forecast of a model
of any depth needs three layers. Logits are counted apart, because their number has a bound: with a head that knows one token.
`overhead` is what the C library's allocator leaves unused between tensors: with glibc's a pass took 1.2 to 1.35 times the bytes of
its tensors on SmolLM2-135M (64 to 1,024 tokens; bf16 the least), up to 1.5 times on a small model with passes of many sizes. The
forecast of the whole process was within 5 % of the truth for 1 to 16 trials on SmolLM2-135M. With MALLOC_MMAP_THRESHOLD_=262144
the overhead is gone, and passes take 4 to 8 % longer for the page faults; so it is left to the user. On a GPU it is 1.
Does not know trials or decisions. Cost: eight passes of at most FEW * 4 tokens through up to three layers, once a node.
"""

from __future__ import annotations

import json
import re
import resource
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sweeper.data.tokens import TokenRow
from sweeper.engine.base import EngineSetup
from sweeper.engine.head import SLICE
from sweeper.engine.knee import work_key
from sweeper.engine.lora_net import LoraNet
from sweeper.engine.node import cache_root, kept
from sweeper.engine.packed import Chunk
from sweeper.engine.params import Params
from sweeper.engine.workload import Workload, slice_of
from sweeper.errors import ModelError

FEW = 64
LAYERS = 3
CPU_OVERHEAD = 1.3
KEPT_FREE = 0.1
"""Share of the free memory that is not planned with: evaluations, checkpoints being written, and other programs need some."""

_WEIGHTS = ".safetensors"
LOGITS_AT_ONCE = 2  # copies of a slice's logits at once: themselves, and their exponentials while they are summed


@dataclass(frozen=True)
class Footprint:
    """Bytes. `density` is how many of a pass's tokens are predicted."""

    base: int
    slot: int
    fixed: float
    token: float
    target: float
    density: float
    overhead: float = 1.0

    def forecast_bytes(self, slots: int, tokens: int) -> int:
        """At the highest moment of a pass of `tokens` tokens, with `slots` trials in the engine."""
        return round(self.base + slots * self.slot + self.pass_bytes(tokens))

    def pass_bytes(self, tokens: int) -> float:
        """What a pass of `tokens` tokens adds at its highest moment."""
        targets = min(SLICE, tokens * self.density)
        return (self.fixed + tokens * self.token + targets * self.target) * self.overhead

    def most_tokens(self, slots: int, memory: int) -> int:
        """Most tokens of a pass with `slots` trials so that all stays within `memory` bytes; 0 if not one fits."""
        low, high = 0, 1
        while high < 1 << 40 and self.forecast_bytes(slots, high) <= memory:
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.forecast_bytes(slots, middle) <= memory else (low, middle)
        return low

    def most_slots(self, tokens: int, memory: int) -> int:
        """Most trials with passes of `tokens` tokens within `memory` bytes; 0 if there is no room for one."""
        return max(0, int((memory - self.forecast_bytes(0, tokens)) // max(1, self.slot)))


def measure_footprint(setup: EngineSetup, net: LoraNet, work: Workload) -> Footprint:
    """Measures `net`, which holds no trial. What a pass takes is read from the node's cache where it was measured before.

    A slot and a pass are those of the heaviest trial that the study may try, not of `work`'s configuration.
    """
    work = replace(work, params=heaviest(setup, net, work.params))
    base = base_bytes(net)
    fixed, token = _kept_pass(setup, net, work)
    return Footprint(
        base=base,
        slot=net.trainable(work.params) * (20 if setup.at == "best" else 16),
        fixed=fixed,
        token=token,
        target=4.0 * LOGITS_AT_ONCE * net.packed.head.shape[0],
        density=_density(work),
        overhead=CPU_OVERHEAD if torch.device(net.packed.device).type == "cpu" else 1.0,
    )


def heaviest(setup: EngineSetup, net: LoraNet, params: Params) -> Params:
    """`params` with the largest rank, the targets with the most numbers, and the most dropout that the study may try."""
    rank = max(params.rank, setup.largest_rank or 0)
    found = replace(params, rank=rank, dropout=max(params.dropout, setup.largest_dropout or 0.0))
    for targets in setup.searched_targets:
        other = replace(found, targets=targets)
        with suppress(ModelError):  # such a trial fails when it comes, and takes nothing
            found = max(found, other, key=net.trainable)
    return found


def _kept_pass(setup: EngineSetup, net: LoraNet, work: Workload) -> tuple[float, float]:
    path = cache_root() / "footprints" / f"{work_key(setup, net, work)}.json"
    found: tuple[float, float] = kept(path, _pass_bytes, lambda: measure_pass(net, work), json.dumps)
    return found


def _pass_bytes(text: str) -> tuple[float, float]:
    fixed, token = json.loads(text)
    return float(fixed), float(token)


def measure_pass(net: LoraNet, work: Workload) -> tuple[float, float]:
    """Bytes of tensors of any pass, and of each of its tokens, logits aside; from slices of two depths."""
    shallow, deep = 1, min(LAYERS, net.depth)
    peaks: dict[int, tuple[float, float]] = {}
    for layers in dict.fromkeys((shallow, deep)):
        with slice_of(net, work.params, layers) as part, _without_logits(net):
            peaks[layers] = _line(part.train, work, max(FEW, work.shortest), net.packed.device)
    factor = (net.depth - shallow) / (deep - shallow) if deep > shallow else 0.0
    fixed, token = (max(0.0, low + (high - low) * factor) for low, high in zip(peaks[shallow], peaks[deep], strict=True))
    return fixed, token


def _line(run: Callable[[Sequence[Chunk]], Any], work: Workload, small: int, device: str) -> tuple[float, float]:
    """Bytes of any pass, and of each token, from a pass of about `small` tokens and one of four times as many."""
    points: list[tuple[int, int]] = []
    for tokens in (small, 4 * small):
        chunks = [replace(chunk, rows=[_of_one_token(row) for row in chunk.rows]) for chunk in work.chunks(tokens)]
        run(chunks)  # what is allocated once and kept is not the second pass's
        size = sum(len(row.ids) for chunk in chunks for row in chunk.rows)
        points.append((size, peak_bytes(partial(run, chunks), device)))
    (a, low), (b, high) = points
    if a == b:
        return 0.0, high / b
    slope = (high - low) / (b - a)
    return low - slope * a, slope


@contextmanager
def _without_logits(net: LoraNet) -> Iterator[None]:
    """While open, the head knows one token."""
    net.packed.vocabulary = 1
    try:
        yield
    finally:
        net.packed.vocabulary = None


def _of_one_token(row: TokenRow) -> TokenRow:
    """As many tokens, and as many of them predicted, but all the first of the vocabulary."""
    return replace(row, ids=np.zeros_like(row.ids))


def _density(work: Workload) -> float:
    return sum(int(np.count_nonzero(row.target[1:])) for row in work.rows) / sum(len(row.ids) for row in work.rows)


def peak_bytes(run: Callable[[], Any], device: str) -> int:
    """Most bytes of tensors alive at once that `run` made: counted tensor by tensor on the CPU, by the allocator on a GPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    with _Live() as live:
        run()
    return int(live.peak)


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages that operations made and nobody let go of yet. What was there before is not counted."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf, 0)
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf, leaf.untyped_storage().nbytes())
        return out

    def _note(self, tensor: torch.Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        if (key := id(storage)) in self._known:
            return
        self._known.add(key)
        weakref.finalize(storage, self._gone, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def base_bytes(net: LoraNet) -> int:
    """What the model and the process around it take, weights that are mapped but were not read yet included."""
    device = torch.device(net.packed.device)
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return resident_bytes() + unread_bytes()


def resident_bytes() -> int:
    """This process's memory; its highest so far where the system does not tell the present one."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def unread_bytes() -> int:
    """Bytes of mapped weights files that are not in this process's memory yet: a pass will read them all."""
    try:
        # The short list first: the long one costs the system a walk over all of this process's pages.
        mapped = _WEIGHTS in Path("/proc/self/maps").read_text()
        text = Path("/proc/self/smaps").read_text() if mapped else ""
    except OSError:
        return 0
    return sum(
        _unread(part) for part in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", text) if part.partition("\n")[0].endswith(_WEIGHTS)
    )


def _unread(mapping: str) -> int:
    """Bytes of one mapping of smaps that are not in memory."""
    numbers = dict(re.findall(r"^(\w+): +(\d+) kB", mapping, re.M))
    return 1024 * (int(numbers.get("Size", 0)) - int(numbers.get("Rss", 0)))
