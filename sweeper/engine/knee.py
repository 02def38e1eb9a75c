"""The knee: how many tokens a pass needs before more of them train no faster.

A `Curve` holds seconds of whole passes (forward and backward, the optimizer's steps aside) at rising tokens. It is measured on
slices of the model: with s(n) seconds through n layers, the whole of L layers takes s(1) + (L - 1) * (s(n) - s(1)) / (n - 1).
Tokens double from FEWEST until throughput is flat for two doublings, the bound is reached, or half the time is used; the other
half goes to more turns over all points, one after another, so that a busy moment hits them all; medians count.

Curves are kept on the node, in a JSON file for each device, threads, model config, dtype, base storage, depth, kind of rows
and torch version. Engines of a node that start together measure once: the first does, the others wait for its curve, so that equal
devices get equal slots. A file that cannot be read is measured anew.
Does not know slots, memory or schedules. Cost: at most SECONDS, once; on one core SmolLM2-135M takes about 5 s and a pass of a
billion parameters' slice 0.2 s for each 100 tokens; a single round over the points is always finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from sweeper.engine.base import EngineSetup
from sweeper.engine.curve import FORMAT, NEAR, Curve
from sweeper.engine.lora_net import LoraNet
from sweeper.engine.node import cache_root, kept
from sweeper.engine.workload import Workload, slice_of

FEWEST = 16
SECONDS = 5.0
LAYERS = 3  # of the deeper slice
TURNS = 5  # at most

Pass = Callable[[], None]


def measured_curve(setup: EngineSetup, net: LoraNet, work: Workload, most: int) -> Curve:
    """The node's curve for this kind of work, measured now (up to `most` tokens a pass) where there is none yet."""
    path = cache_root() / "knees" / f"{work_key(setup, net, work)}.json"
    return kept(path, Curve.from_json, lambda: measure_curve(net, work, most), Curve.to_json)


def measure_curve(net: LoraNet, work: Workload, most: int, seconds: float = SECONDS) -> Curve:
    """Measures `net`, which holds no trial, with passes of at most `most` tokens (but at least one row); see above."""
    shallow, deep = 1, min(LAYERS, net.depth)

    def passes(tokens: int) -> tuple[int, list[Pass]]:
        chunks = work.chunks(tokens)
        size = sum(len(row.ids) for chunk in chunks for row in chunk.rows)
        return size, [partial(_pass, net, layers, chunks) for layers in dict.fromkeys((shallow, deep))]

    with slice_of(net, work.params, deep):
        times = take_turns(passes, FEWEST, most, seconds)
    factor = (net.depth - shallow) / (deep - shallow) if deep > shallow else 0.0
    # A busy moment can make the deeper slice the quicker one.
    return Curve(tuple((size, low + max(0.0, high - low) * factor) for size, (low, high) in times))


def take_turns(
    passes: Callable[[int], tuple[int, Sequence[Pass]]], fewest: int, most: int, seconds: float
) -> list[tuple[int, tuple[float, float]]]:
    """Median seconds of the first and last of the passes at each size, rising.

    `passes(tokens)` gives the true tokens and what is to be timed at that size.
    """
    began = time.perf_counter()
    sizes: dict[int, Sequence[Pass]] = {}
    times: dict[int, list[list[float]]] = {}
    tokens = fewest
    while True:
        size, todo = passes(min(tokens, most))
        if size not in sizes:
            if not sizes:
                _times(todo)  # warms up
            sizes[size] = todo
            times[size] = [_times(todo)]
        slow = time.perf_counter() - began > seconds / 2
        if tokens >= most or (slow and len(sizes) > 1) or _flat([(s, t[0][-1]) for s, t in times.items()]):
            break
        tokens *= 2
    while time.perf_counter() - began < seconds and len(next(iter(times.values()))) < TURNS:
        for size, todo in sizes.items():
            times[size].append(_times(todo))
    # The first turn of a size allocates what the later ones find.
    kept = {size: turns[1:] if len(turns) > 2 else turns for size, turns in sorted(times.items())}
    return [
        (size, (statistics.median(t[0] for t in turns), statistics.median(t[-1] for t in turns))) for size, turns in kept.items()
    ]


def work_key(setup: EngineSetup, net: LoraNet, work: Workload) -> str:
    """32 hex digits that stand for all that a pass of such work depends on. Lengths of rows count by their power of two."""
    return digest(
        {
            **_base_facts(setup, net),
            "depth": net.depth,
            "checkpointing": setup.training.gradient_checkpointing,
            "adapter": [work.params.rank, work.params.targets, work.params.dropout > 0],
            "start": len(net.packed.start),
            "work": [round(work.row_tokens).bit_length(), work.batch, work.chunk_tokens],
        }
    )


def base_key(setup: EngineSetup, net: LoraNet) -> str:
    """The same for the products of the frozen model alone."""
    return digest(_base_facts(setup, net))


def _base_facts(setup: EngineSetup, net: LoraNet) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "device": device_name(setup.device),
        "threads": setup.threads,
        "config": {key: value for key, value in net.packed.model.config.to_dict().items() if not key.startswith("_")},
        "dtype": setup.training.dtype,
        "base": setup.training.base,
        "versions": [torch.__version__, transformers.__version__],
    }


def digest(facts: Mapping[str, Any]) -> str:
    """32 hex digits that stand for `facts`."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def device_name(device: str) -> str:
    """The GPU's name, or the processor's with its number of cores."""
    kind = torch.device(device)
    if kind.type == "cuda":
        return torch.cuda.get_device_name(kind)
    return f"{_processor()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "flags"))]
    return hashlib.sha256("\n".join(named[:2]).encode()).hexdigest()[:12] if named else platform.machine()


def _flat(times: Sequence[tuple[int, float]]) -> bool:
    """Whether neither of the last two doublings was 5 % better than the best before them."""
    rates = [size / took for size, took in times]
    return len(rates) > 3 and max(rates[-2:]) < (1 + NEAR) * max(rates[:-2])


def _pass(net: LoraNet, layers: int, chunks: Sequence[Any]) -> None:
    backbone = net.packed.model.base_model
    every = backbone.layers
    backbone.layers = every[:layers]
    try:
        net.train(chunks)
        wait(net.packed.device)
    finally:
        backbone.layers = every


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _times(passes: Sequence[Pass]) -> list[float]:
    out: list[float] = []
    for run in passes:
        began = time.perf_counter()
        run()
        out.append(time.perf_counter() - began)
    return out
