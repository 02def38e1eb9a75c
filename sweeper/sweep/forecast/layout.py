"""From a prepared sweep to the frame of its forecast: engines, slots, rows; and what `plan` measured of it before.

Does not know how fast anything is, but for the seconds that a cluster and its workers take to start, which are the same for all.
Cost: a small file read or written.
"""

from __future__ import annotations

import json
import math
from typing import Any

from sweeper.data.tokens import TokenSet
from sweeper.engine.base import EngineSetup
from sweeper.engine.evaluate import plan as evaluation_plan
from sweeper.engine.node import cores
from sweeper.executors.factory import engine_setup
from sweeper.spec.models import ExecutorSpec
from sweeper.study.read import StudyReader
from sweeper.sweep.forecast.observed import Observed, history_of
from sweeper.sweep.forecast.outlook import History
from sweeper.sweep.forecast.speed import Passes, Speed, speed_facts, with_facts
from sweeper.sweep.prepare import Prepared

CLUSTER_SECONDS = 6.0
"""A local Ray cluster takes 3 to 8 s to start, a second to end."""

WORKER_SECONDS = 5.0
"""A worker's process and its imports; its model comes on top."""


SHARED_CORES = 1.03
"""Seconds that go by for each second of an engine's work: the driver, Ray and the trackers took 3 % of two cores of the demo."""


def setup_of(ready: Prepared) -> EngineSetup:
    """What an engine of this sweep is given by its executor."""
    return engine_setup(ready.spec, ready.engine_setup(), ready.choice)


def frame_of(ready: Prepared, workers: int | None = None) -> Speed:
    """Engines and rows of the sweep on this machine, or on `workers` engines; pass times stand in until they are known.

    Workers of a cluster that the spec names, beyond those of this machine, are not counted unless `executor.workers` says so.
    """
    setup = setup_of(ready)
    train, validation = TokenSet(ready.bundle.train).info, TokenSet(ready.bundle.validation).info
    read = evaluation_plan(setup, train, validation)
    chunk = setup.training.chunk_tokens or 1
    around = 0.0 if ready.choice.kind == "local" else CLUSTER_SECONDS + WORKER_SECONDS
    return Speed(
        passes=Passes([(1.0, 1.0)]),
        read_seconds=0.0,
        row_tokens=max(1.0, train.tokens / max(1, train.rows)),
        between_rows=read.between,
        full_rows=read.full,
        chunk_tokens=chunk,
        micro_tokens=setup.micro_tokens or chunk,
        slots=max(1, setup.slots),
        engines=workers or engines_of(ready.spec.executor, ready.choice.kind, setup.device),
        start_seconds=around,
        wait=1.0 if ready.choice.kind == "local" or setup.device != "cpu" else SHARED_CORES,
    )


def engines_of(executor: ExecutorSpec, kind: str, device: str) -> int:
    """Engines that this machine has room for, at most `executor.workers`; at least one."""
    if kind == "local":
        return 1
    room = math.floor(cores() / executor.cpus)
    if device != "cpu":
        import torch

        room = min(room, math.floor(torch.cuda.device_count() / (executor.gpus or 1)))
    elif executor.address is not None and executor.workers is not None:
        room = executor.workers
    return max(1, min(room, executor.workers or room))


def remember(ready: Prepared, speed: Speed) -> None:
    """Keeps what was measured beside the sweep, for the next forecast of this very study."""
    ready.home.speeds.mkdir(parents=True, exist_ok=True)
    document = {"identity": ready.identity.hash, "kind": ready.choice.kind, **speed_facts(speed)}
    (ready.home.speeds / f"{ready.spec.name}.json").write_text(json.dumps(document))


def remembered(ready: Prepared, frame: Speed) -> Speed | None:
    """What `remember` kept of this study and this executor, if it did."""
    try:
        document: dict[str, Any] = json.loads((ready.home.speeds / f"{ready.spec.name}.json").read_text())
    except (OSError, ValueError):
        return None
    if document.get("identity") != ready.identity.hash or document.get("kind") != ready.choice.kind:
        return None
    return with_facts(frame, document)


def past_of(ready: Prepared, frame: Speed, driven: float = 0.0) -> tuple[History, Observed]:
    """What the study's own trials say; nothing where it has not begun, or is another study of this name."""
    reader = StudyReader.of(ready.storage, ready.spec.name)
    if reader is None or reader.plan(ready.spec.name).identity != ready.identity.hash:
        return History(), Observed()
    return history_of(reader, ready.plan, frame, driven)
