"""What an engine measures at its start in a sweep, asked for apart: the knee, and the forecast of its memory.

A benchmark fixes the number of trials, so its engines measure nothing themselves; the tokens of a pass are then the knee that is
found here, as a sweep's engine would find it. In a process whose memory is to be measured this must not run.
Does not know processes. Cost: the model is loaded once more, and 5 s where the node has no curve yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.workload import Workload

MOST_TOKENS = {"cpu": 4096, "cuda": 65536}


@dataclass(frozen=True)
class Found:
    """`knee` tokens of a pass; `forecast` bytes at the highest moment, by number of trials."""

    knee: int
    forecast: dict[int, int]


def measure(work: Workload, train: Path, batch: int, threads: int, counts: Sequence[int] = ()) -> Found:
    """Measures with steps of `batch` rows; forecasts for each of `counts` trials, with passes of whole steps up to the knee."""
    import torch

    import sweeper.engine.engine  # noqa: F401  # an engine that measures has its own modules in memory
    from sweeper.data.tokens import TokenSet
    from sweeper.engine.footprint import measure_footprint
    from sweeper.engine.knee import measured_curve
    from sweeper.engine.lora_net import LoraNet
    from sweeper.engine.workload import workload

    torch.set_num_threads(threads)
    setup = work.setup(train, train, slots=1, threads=threads)
    setup = replace(setup, training=setup.training.model_copy(update={"batch_size": batch}))
    net = LoraNet(setup)
    typical = workload(setup.training, TokenSet(train), setup.training.chunk_tokens or 1)
    footprint = measure_footprint(setup, net, typical) if counts else None
    knee = max(typical.longest, measured_curve(setup, net, typical, MOST_TOKENS[torch.device(work.device).type]).knee)
    step = typical.step_tokens
    tokens = {count: min(count, max(1, knee // step)) * step for count in counts}
    return Found(knee, {count: footprint.forecast_bytes(count, tokens[count]) for count in counts} if footprint else {})
