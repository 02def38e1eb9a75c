"""What the engine's benchmarks train: models with drawn weights, rows of a chosen length, and engines set up for them.

    tiny   two layers, 64 wide         135m   SmolLM2-135M's configuration        1b   that of Llama 3.2 1B

Speed and memory need no trained weights, so any machine can run these without a download; a folder of real ones is taken as well.
Imports only the engine's own layers, so that a machine without Optuna and Ray can measure. Cost: drawing and saving a model takes
a few seconds for 135 million numbers, half a minute for a billion.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sweeper.data.tokens import TokenInfo, TokenRow, write_token_set
from sweeper.engine.base import EngineSetup
from sweeper.records import ParamValue, TrialSpec
from sweeper.spec.models import EvaluateSpec, TrainingSpec

if TYPE_CHECKING:
    from sweeper.engine.engine import TrialEngine

_LLAMA: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
    },
    "135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
    },
    "1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
    },
}
MODELS = tuple(_LLAMA)
TARGETS = 2  # tokens of a row that are predicted: a label and its end
LABELS = ((7, 2), (11, 2))
BUDGET = 1 << 30  # examples: no trial of a speed measurement ends by itself


@dataclass(frozen=True)
class Workload:
    """A model folder and the engines for it. `dropout` is that of every trial."""

    model: str
    dtype: str
    device: str
    rank: int
    dropout: float
    folder: Path

    def rows(self, name: str, lengths: Sequence[int], start: int = 0) -> Path:
        """A token set of rows of these lengths below `folder`, which begin with the same `start` tokens; made once."""
        place = self.folder / name
        if not place.exists():
            write_rows(place, lengths, vocabulary(self.model), start)
        return place

    def setup(self, train: Path, validation: Path, slots: int, threads: int, micro_tokens: int | None = None) -> EngineSetup:
        """An engine's setup. With `micro_tokens` None a pass has at most a chunk's tokens."""
        from sweeper.engine.probe import CHUNK_TOKENS

        device = self.device.partition(":")[0]
        training = TrainingSpec(
            dtype=self.dtype,
            rank=self.rank,
            alpha=2.0 * self.rank,
            dropout=self.dropout,
            max_length=max_length(train),
            chunk_tokens=CHUNK_TOKENS[device],
        )
        return EngineSetup(
            study="benchmark",
            model=self.model,
            revision=None,
            trust_remote_code=False,
            train=train,
            validation=validation,
            training=training,
            evaluate=EvaluateSpec(every=BUDGET, share=1.0),
            metrics=("loss", "accuracy"),
            objective="loss",
            maximize=False,
            at="last",
            checkpoint_seconds=1e9,
            full_examples=BUDGET,
            slots=slots,
            micro_tokens=micro_tokens,
            threads=threads,
            device=self.device,
        )

    def trial(self, number: int, batch: int, examples: int = BUDGET, evaluations: Sequence[int] = ()) -> TrialSpec:
        """A trial of `batch` rows a step; its configuration differs from others' in nothing that costs time."""
        params: dict[str, ParamValue] = {
            "learning_rate": 1e-4 * (1 + number % 7),
            "batch_size": batch,
            "weight_decay": 0.01,
            "dropout": self.dropout,
            "rank": self.rank,
            "alpha": 2.0 * self.rank,
            "targets": "all",
            "warmup": 0.0,
            "schedule": "constant",
            "beta1": 0.9,
            "beta2": 0.999,
            "clip": 1.0,
            "label_smoothing": 0.0,
            "epochs": 1.0,
        }
        clock = (*evaluations, examples)
        return TrialSpec("benchmark", number, params, seed=number, examples=examples, evaluations=clock, rungs=())


class MemoryDepot:
    """A depot that keeps nothing: no measurement reads a file back, and none is about disks."""

    def put(self, name: str, files: Mapping[str, bytes]) -> str:
        """Forgets `files`."""
        return name

    def get(self, name: str) -> dict[str, bytes]:
        """Raises FileNotFoundError, always."""
        raise FileNotFoundError(name)

    def remove(self, name: str) -> None:
        """Nothing is there to be removed."""


def train_on(engine: TrialEngine, examples: int) -> float:
    """Seconds until every trial in `engine`, which trains for ever, has seen so many more examples."""
    running = engine._running.values()
    aim = min(trial.progress.examples for trial in running) + examples
    began = time.perf_counter()
    while min(trial.progress.examples for trial in running) < aim:
        engine.step()
    return time.perf_counter() - began


def add_model(parser: argparse.ArgumentParser) -> None:
    """The options that say what is trained, and on what."""
    parser.add_argument("--model", default="135m", metavar="NAME", help=f"{', '.join(MODELS)}, or a model folder (default: 135m)")
    parser.add_argument("--random-weights", action="store_true", help="of a folder take the configuration alone and draw weights")
    parser.add_argument("--layers", type=int, help="so many layers in place of the configuration's (draws weights)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.0, help="LoRA dropout of all trials on both sides (default: 0)")


def workload(options: argparse.Namespace, folder: Path) -> Workload:
    """What the options of `add_model` ask for; a drawn model is written below `folder`."""
    model = options.model
    if model in _LLAMA or options.random_weights or options.layers:
        model = str(draw_model(folder / "model", options.model, options.dtype, options.layers))
    return Workload(model, options.dtype, options.device, options.rank, options.dropout, folder)


def draw_model(folder: Path, name: str, dtype: str = "fp32", layers: int | None = None) -> Path:
    """Saves a model of the configuration `name` (a preset, or a folder that has one) with weights drawn from seed 0."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if name in _LLAMA:
        config: Any = LlamaConfig(tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, **_LLAMA[name])
    else:
        config = AutoConfig.from_pretrained(name)
    if layers is not None:
        config.num_hidden_layers = layers
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.to(torch.float32 if dtype == "fp32" else torch.bfloat16).save_pretrained(folder)
    return folder


def vocabulary(model: str) -> int:
    """Tokens of the model's vocabulary, from its folder's file alone: who only arranges a measurement need not load torch."""
    config = json.loads((Path(model) / "config.json").read_text())
    return int(config.get("text_config", config)["vocab_size"])


def max_length(side: Path) -> int:
    """Tokens of the longest row of a token set."""
    from sweeper.data.tokens import TokenSet

    return TokenSet(side).info.longest


def write_rows(folder: Path, lengths: Sequence[int], size: int, start: int = 0) -> None:
    """A side of classification rows: drawn ids below `size`, the first `start` of all the same, and a label of TARGETS tokens at
    each row's end."""
    import pyarrow as pa

    chance = np.random.default_rng(0)
    begin = chance.integers(16, size, start)
    rows: list[TokenRow] = []
    for number, length in enumerate(lengths):
        label = number % len(LABELS)
        prompt = length - TARGETS
        ids = np.concatenate([begin, chance.integers(16, size, prompt - start), LABELS[label]]).astype(np.int32)
        rows.append(TokenRow(ids, np.arange(length) >= prompt, prompt, label))
    info = TokenInfo("classify", len(rows), sum(lengths), max(lengths), ("no", "yes"), LABELS, end_id=LABELS[0][-1])
    names = [f"r{number}" for number in range(len(rows))]
    write_token_set(folder, info, rows, pa.table({"row_id": names, "reference": ["yes"] * len(rows)}))
