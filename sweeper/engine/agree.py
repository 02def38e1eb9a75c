"""Does bf16 learn here as fp32 does? A few real steps in both, and their losses side by side.

The default configuration takes STEPS steps on ROWS short training rows each (random tokens where there are no rows yet), with the
same weights and dropout masks. Their losses in bf16 must lie within TOLERANCE of fp32's in all, and none further off than twice
that: a step's loss may be that of eight predicted tokens, and of thirty such steps one was 2 % off by rounding alone (SmolLM2-135M,
the demo's sentences). The losses are kept on the node, for the next study of the same model, rows and default configuration.
Does not know which is faster (`dtypes.py`). Cost: the model is loaded twice, one after the other, and takes 2 * STEPS passes: about
6 s for 135M parameters on one core, once. Models of more than MOST_PARAMETERS are not compared: loading one twice takes minutes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import transformers

from sweeper.data.tokens import TokenRow, TokenSet
from sweeper.engine.base import EngineSetup
from sweeper.engine.batch import target_tokens
from sweeper.engine.knee import device_name, digest
from sweeper.engine.memory import let_go
from sweeper.engine.net import build_net
from sweeper.engine.node import cache_root, kept
from sweeper.engine.packed import Chunk
from sweeper.engine.workload import default_params
from sweeper.spec.models import EvaluateSpec, TrainingSpec

FORMAT = 2  # to be raised with what is compared below
STEPS = 4
ROWS = 4
ROW_TOKENS = 64
TOLERANCE = 0.02
MOST_PARAMETERS = 2_000_000_000
_SAMPLE = 256


@dataclass(frozen=True)
class Agreement:
    """Mean losses of the same steps in both dtypes."""

    fp32: tuple[float, ...]
    bf16: tuple[float, ...]

    @property
    def worst(self) -> float:
        """The largest relative difference of a step; inf where a loss is not finite."""
        found = [abs(half - full) / max(abs(full), 1e-6) for full, half in zip(self.fp32, self.bf16, strict=True)]
        return max(found) if np.isfinite(found).all() else float("inf")

    @property
    def apart(self) -> float:
        """The steps' absolute differences over their losses in fp32, summed; inf where a loss is not finite."""
        full, half = np.array(self.fp32), np.array(self.bf16)
        return float(np.abs(half - full).sum() / max(np.abs(full).sum(), 1e-6)) if np.isfinite(self.worst) else float("inf")

    @property
    def agrees(self) -> bool:
        """Whether bf16 may stand for fp32."""
        return self.apart <= TOLERANCE and self.worst <= 2 * TOLERANCE

    @classmethod
    def from_json(cls, text: str) -> Agreement:
        """As it was kept. Raises ValueError if it is none."""
        try:
            raw = json.loads(text)
            fp32, bf16 = (tuple(float(loss) for loss in raw[dtype]) for dtype in ("fp32", "bf16"))
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no agreement: {error}") from error
        if len(fp32) != STEPS or len(bf16) != STEPS:
            raise ValueError("this is no agreement: it is of another number of steps")
        return cls(fp32, bf16)

    def __str__(self) -> str:
        relation = "within" if self.agrees else "not within"
        found = f"the losses of {len(self.fp32)} steps differ by {self.apart:.2%}, each by {self.worst:.2%} at most"
        return f"{found}: {relation} {TOLERANCE:.0%} in all and {2 * TOLERANCE:.0%} for each"


def compared(
    training: TrainingSpec,
    model: Path,
    data: TokenSet | None = None,
    vocabulary: int = 256,
    device: str = "cpu",
    threads: int = 1,
    trust_remote_code: bool = False,
) -> Agreement:
    """What `compare` gives, or gave on this node for the same files, configuration and versions."""
    files = ((file.name, file.stat()) for file in sorted(Path(model).iterdir()) if file.is_file())
    depends = {
        "format": FORMAT,
        "training": training.model_dump(mode="json"),
        "model": [str(Path(model).resolve()), *((name, facts.st_size, facts.st_mtime_ns) for name, facts in files)],
        "rows": data.info.tokens_fingerprint if data is not None else vocabulary,
        "device": device_name(device),
        "threads": threads,
        "versions": [torch.__version__, transformers.__version__],
    }
    path = cache_root() / "agreements" / f"{digest(depends)}.json"
    found: Agreement = kept(
        path,
        Agreement.from_json,
        lambda: compare(training, model, data, vocabulary, device, threads, trust_remote_code),
        lambda made: json.dumps(asdict(made)),
    )
    return found


def compare(
    training: TrainingSpec,
    model: Path,
    data: TokenSet | None = None,
    vocabulary: int = 256,
    device: str = "cpu",
    threads: int = 1,
    trust_remote_code: bool = False,
) -> Agreement:
    """Trains `model` a few steps in both dtypes; `training` is the default configuration. Raises ModelError if it cannot."""
    batches = _batches(data, vocabulary)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        losses = []
        for dtype in ("fp32", "bf16"):
            setup = EngineSetup(
                study="",
                model=str(model),
                revision=None,
                trust_remote_code=trust_remote_code,
                train=Path(),
                validation=Path(),
                training=training.model_copy(update={"dtype": dtype}),
                evaluate=EvaluateSpec(),
                metrics=(),
                objective="loss",
                maximize=False,
                at="last",
                checkpoint_seconds=0.0,
                full_examples=1,
                prefix_bytes=0,
                threads=threads,
                device=device,
            )
            losses.append(_losses(setup, batches))
            let_go()
        return Agreement(*losses)
    finally:
        torch.set_num_threads(before)


def _losses(setup: EngineSetup, batches: Sequence[Sequence[TokenRow]]) -> tuple[float, ...]:
    net = build_net(setup)
    params = default_params(setup.training)
    row = net.place(0, params, seed=0)
    out: list[float] = []
    for step, rows in enumerate(batches):
        weight = 1 / max(1, sum(target_tokens(row) for row in rows))
        out += net.train([Chunk(0, rows, weight, params.label_smoothing, seed=step)])
        row.clip(row.gradient_norm(), params.clip)
        row.step(params.learning_rate, params.weight_decay, params.beta1, params.beta2)
        net.updated(0)
    return tuple(out)


def _batches(data: TokenSet | None, vocabulary: int) -> list[list[TokenRow]]:
    """STEPS times ROWS rows: the shortest of a sample, because they cost least; again from the first where there are too few."""
    if data is None or len(data) == 0:
        rows = _random_rows(vocabulary)
    else:
        sample = (data.row(int(i)) for i in np.linspace(0, len(data) - 1, min(len(data), _SAMPLE)).round())
        rows = sorted(sample, key=lambda row: len(row.ids))[: STEPS * ROWS]
    return [[rows[(step * ROWS + i) % len(rows)] for i in range(ROWS)] for step in range(STEPS)]


def _random_rows(vocabulary: int) -> list[TokenRow]:
    generator = np.random.default_rng(0)
    every = np.ones(ROW_TOKENS, np.bool_)
    return [TokenRow(generator.integers(0, vocabulary, ROW_TOKENS).astype(np.int32), every, 0, -1) for _ in range(STEPS * ROWS)]
