"""How many trials share an engine's model, and how many tokens share a pass: decided at the engine's start, from measurements.

A trial alone has `step` tokens in a pass: its batch, or a chunk of it. Where a pass of that many does not fill the device, more
trials do. `slots` is the fewest trials whose passes come within 5 % of the best throughput that memory and MOST_SLOTS allow: past
the knee more trials gain nothing, and each one more in training is one whose result the sampler and the pruner do not know
yet. Where even the best is less than WORTH_IT times a trial alone, it is one trial at a time: packing is never slower than one
after another.
Who restarts an engine that the system killed for its memory gives the next one half of `slots` and `micro_tokens`; with slots
given no throughput is measured, only whether the longest row fits (see `require_room`).
Does not know Ray, studies or why a machine has so much memory; engines that share a machine are each told their part
(`EngineSetup.memory`). Cost: that of `footprint.py` and, once a node, of `knee.py`.
"""

from __future__ import annotations

import json
import math

from sweeper.data.tokens import TokenSet
from sweeper.engine.base import Capacity, EngineSetup
from sweeper.engine.curve import NEAR, Curve
from sweeper.engine.footprint import KEPT_FREE, Footprint, measure_footprint
from sweeper.engine.knee import base_key, measured_curve
from sweeper.engine.lora_net import LoraNet
from sweeper.engine.net import Net
from sweeper.engine.node import cache_root, kept
from sweeper.engine.room import room
from sweeper.engine.workload import Workload, workload
from sweeper.errors import DataError, ModelError

MOST_SLOTS = 16
MOST_TOKENS = 1 << 16
"""Of a pass that is measured: a GPU's knee lies at thousands."""
WORTH_IT = 1.05
SPREAD = 1.25
"""Batches are longer and shorter than the mean one; so much more than the mean has room in a pass."""


def plan_capacity(setup: EngineSetup, net: Net, train: TokenSet, validation: TokenSet) -> Capacity:
    """The capacity of an engine with `net`, which holds no trial yet.

    Raises ModelError if memory has no room for the model and one trial, DataError if it has none for the longest row.
    """
    if not isinstance(net, LoraNet):
        tokens = setup.micro_tokens or setup.training.chunk_tokens or 1
        return Capacity(1, tokens, reason="this kind of trial needs the model for itself")
    work, footprint, memory = _fitting(setup, net, train, validation)
    most = min(MOST_TOKENS, max(work.longest, footprint.most_tokens(1, memory)))
    curve = measured_curve(setup, net, work, most)
    return choose(curve, footprint, memory, work, micro_tokens=setup.micro_tokens)


def require_room(setup: EngineSetup, net: Net, train: TokenSet, validation: TokenSet) -> None:
    """Raises as `plan_capacity` does, where slots are given and no throughput is measured.

    Trials that need the model for themselves are not looked at: nobody has measured what their passes take. Cost: a few
    hundredths of a second where the node knows what a pass takes; else that of `footprint.py`, 1.3 s on SmolLM2-135M.
    """
    if isinstance(net, LoraNet):
        _fitting(setup, net, train, validation)


def _fitting(setup: EngineSetup, net: LoraNet, train: TokenSet, validation: TokenSet) -> tuple[Workload, Footprint, int]:
    """What is trained, what it takes, and the bytes there are for it: enough for one trial with the longest row."""
    work = workload(setup.training, train, setup.training.chunk_tokens or 1)
    footprint = measure_footprint(setup, net, work)
    memory = usable(setup, footprint)
    refuse_too_long(footprint, memory, max(train.info.longest, validation.info.longest))
    return work, footprint, memory


def keeps_rows_apart(setup: EngineSetup, net: Net) -> bool:
    """Whether a trial's numbers do not depend on its neighbours to the bit where that is promised: CPU, fp32, one thread.

    Looked at once a node and model; see `steady.py`.
    """
    promised = setup.device == "cpu" and setup.threads == 1 and setup.training.dtype == "fp32"
    if not promised or not isinstance(net, LoraNet):
        return True
    path = cache_root() / "steady" / f"{base_key(setup, net)}.json"
    steady: bool = kept(path, lambda text: bool(json.loads(text)), net.is_steady, json.dumps)
    return steady


def usable(setup: EngineSetup, footprint: Footprint) -> int:
    """Bytes that an engine plans with: all that it was given, or what it has and nine tenths of what is free."""
    if setup.memory is not None:
        return setup.memory
    return footprint.base + int((1 - KEPT_FREE) * (room(setup, footprint.base) - footprint.base))


def choose(
    curve: Curve, footprint: Footprint, memory: int, work: Workload, most: int = MOST_SLOTS, micro_tokens: int | None = None
) -> Capacity:
    """Slots and tokens of a pass within `memory` bytes, at most `most` slots; `micro_tokens` where they are given already."""
    step = work.step_tokens
    fit = max(1, max((k for k in range(1, most + 1) if footprint.forecast_bytes(k, k * step) <= memory), default=1))
    best = max(curve.throughput(k * step) for k in range(1, fit + 1))
    slots = next(k for k in range(1, fit + 1) if curve.throughput(k * step) >= (1 - NEAR) * best)
    gain = curve.throughput(slots * step) / curve.throughput(step)
    alone = gain < WORTH_IT
    if alone:
        slots = 1
    tokens = micro_tokens or max(
        work.longest, min(max(curve.knee, math.ceil(SPREAD * slots * step)), footprint.most_tokens(slots, memory))
    )
    why = _why_alone(curve, step, fit, gain) if alone else _why_together(curve, footprint, memory, slots, fit, step, gain, most)
    return Capacity(slots, tokens, 1.0 if alone else gain, why)


def refuse_too_long(footprint: Footprint, memory: int, longest: int) -> None:
    """Raises ModelError or DataError if a trial with a row of `longest` tokens does not fit into `memory` bytes."""
    most = footprint.most_tokens(1, memory)
    if most == 0:
        raise ModelError(
            f"the model and one trial take {gigabytes(footprint.forecast_bytes(1, 1))}, but an engine may take "
            f"{gigabytes(memory)} here; use a smaller model, dtype: bf16 or a smaller rank, "
            "fewer engines on the machine (executor.workers), or more memory"
        )
    if most < longest:
        raise DataError(
            f"a row of {longest} tokens does not fit into memory: training it alone takes "
            f"{gigabytes(footprint.forecast_bytes(1, longest))}, but an engine may take {gigabytes(memory)} here, "
            f"enough for {most} tokens; set training.max_length to {most} or less (and data.too_long to cut or drop), "
            "or training.gradient_checkpointing: true, or run fewer engines on the machine (executor.workers)"
        )


def gigabytes(size: float) -> str:
    """For people: 1.25 GB, 310 MB."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _why_alone(curve: Curve, step: int, fit: int, gain: float) -> str:
    if fit == 1:
        return f"memory has room for one trial with passes of {step:,} tokens"
    return (
        f"one trial's {step:,} tokens fill a pass on this device (its knee is at {curve.knee:,}): several together would train "
        f"{max(0.0, gain - 1):.0%} faster, and under {WORTH_IT - 1:.0%} one trial at a time tells the search more"
    )


def _why_together(curve: Curve, footprint: Footprint, memory: int, slots: int, fit: int, step: int, gain: float, most: int) -> str:
    together = slots * step
    said = (
        f"passes of {together:,} tokens train {curve.throughput(together):,.0f} tokens a second, a trial alone with {step:,} "
        f"a pass {curve.throughput(step):,.0f}: {gain:.2f} times as fast together"
    )
    if slots < fit or curve.throughput(together) >= (1 - NEAR) * curve.plateau:
        return f"{said}, and more trials would gain less than {NEAR:.0%}"
    if fit < most:
        return (
            f"{said}; memory ({gigabytes(memory)}) has room for {slots}, each {gigabytes(footprint.slot)} beside its part of a pass"
        )
    return f"{said}; more than {most} would tell the search too little"
