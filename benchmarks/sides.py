"""Both sides of the engine's benchmarks, as objects that train for a while and say how many optimizer steps that were.

    Packed       one engine, `trials` of them in its slots at once
    Sequential   one trial after another as a careful user writes it: transformers, peft, torch's fused AdamW, clipping; a step is
                 forward, backward, step; nothing is read back from the device between steps

Both read the same rows. Sequential takes batches of equal rows without padding or mask, its best case. Its steps do not depend on
which trial they belong to, so one trial stands for all; making and unmaking adapters between trials is not charged to it.
Does not know processes or statistics. Imports neither Optuna nor Ray.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.workload import BUDGET, MemoryDepot, Workload
from sweeper.data.tokens import TokenSet
from sweeper.engine.base import Ended
from sweeper.engine.engine import TrialEngine

IGNORED = -100
FEWEST_PIECES = 2

warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)  # transformers of itself


@dataclass(frozen=True)
class Trained:
    """What was done in `seconds`: optimizer steps of all trials together, and rows read in an evaluation."""

    steps: float
    seconds: float

    @property
    def rate(self) -> float:
        """A second."""
        return self.steps / self.seconds


class Packed:
    """The engine, with room for `slots` trials."""

    def __init__(self, work: Workload, train: Path, validation: Path, slots: int, threads: int, micro_tokens: int | None = None):
        self._work = work
        self._rows = TokenSet(validation).info.rows
        self._engine = TrialEngine(work.setup(train, validation, slots, threads, micro_tokens), MemoryDepot())
        self._next = 0
        self._warm: set[tuple[int, int]] = set()

    def train(self, trials: int, batch: int, seconds: float) -> Trained:
        """Trains `trials` new trials of `batch` rows a step for about `seconds`; entering and leaving is not timed."""
        if (trials, batch) not in self._warm:
            self._warm.add((trials, batch))
            self._run(trials, batch, 0.0, 1)
        return self._run(trials, batch, seconds, FEWEST_PIECES)

    def evaluate(self, trials: int) -> Trained:
        """Every trial reads the whole validation side once, after a single step; rows a second."""
        for _ in range(trials):
            self._engine.admit(self._work.trial(self._number(), 1, examples=1))
        read = 0.0
        while self._engine.trials():
            for event in self._engine.step():
                if isinstance(event, Ended):
                    read += event.outcome.evaluate_seconds
        return Trained(self._rows * trials, read)

    def close(self) -> None:
        """Lets go of the model."""
        self._engine.close()

    def _run(self, trials: int, batch: int, seconds: float, pieces: int) -> Trained:
        for _ in range(trials):
            self._engine.admit(self._work.trial(self._number(), batch, BUDGET))
        synchronise(self._work.device)
        began = time.perf_counter()
        done = 0
        while done < pieces or time.perf_counter() - began < seconds:
            self._engine.step()
            done += 1
        synchronise(self._work.device)
        took = time.perf_counter() - began
        examples = sum(ended.outcome.examples for ended in self._engine.preempt())
        return Trained(examples / batch, took)

    def _number(self) -> int:
        self._next += 1
        return self._next


class Sequential:
    """One PEFT trial at a time."""

    def __init__(self, work: Workload, train: Path, validation: Path, threads: int) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        torch.set_num_threads(threads)
        self._device = work.device
        dtype = torch.float32 if work.dtype == "fp32" else torch.bfloat16
        base: Any = AutoModelForCausalLM.from_pretrained(work.model, dtype=dtype, use_safetensors=True).to(work.device)
        base.config.use_cache = False
        head = base.get_output_embeddings()
        names = {n.rpartition(".")[2] for n, m in base.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}
        config = LoraConfig(
            r=work.rank, lora_alpha=2 * work.rank, lora_dropout=work.dropout, target_modules=sorted(names), task_type="CAUSAL_LM"
        )
        self._model: Any = get_peft_model(base, config)
        self._trained = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=1e-4, weight_decay=0.01, fused=True)
        self._train, self._validation = TokenSet(train), TokenSet(validation)
        self._at = 0
        self._warm: set[int] = set()

    def train(self, batch: int, seconds: float) -> Trained:
        """Steps of `batch` rows for about `seconds`."""
        self._model.train()
        if batch not in self._warm:
            self._warm.add(batch)
            self._step(batch)
        synchronise(self._device)
        began = time.perf_counter()
        done = 0
        while done < FEWEST_PIECES or time.perf_counter() - began < seconds:
            self._step(batch)
            done += 1
        synchronise(self._device)
        return Trained(done, time.perf_counter() - began)

    @torch.no_grad()
    def evaluate(self, batch: int = 16) -> Trained:
        """Reads the whole validation side once, all labels by their first token as the yardstick does; rows a second."""
        self._model.eval()
        synchronise(self._device)
        began = time.perf_counter()
        for start in range(0, len(self._validation), batch):
            rows = range(start, min(start + batch, len(self._validation)))
            ids, labels = self._batch(self._validation, rows)
            out = self._model(input_ids=ids, labels=labels)
            out.loss.item()
            out.logits[:, -3].argmax(-1).tolist()
        return Trained(len(self._validation), time.perf_counter() - began)

    def _step(self, batch: int) -> None:
        rows = [(self._at + i) % len(self._train) for i in range(batch)]
        self._at += batch
        ids, labels = self._batch(self._train, rows)
        self._model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _batch(self, data: TokenSet, numbers: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """ids and labels int64 [B, L] of rows of one length."""
        rows = [data.row(number) for number in numbers]
        ids = np.stack([row.ids for row in rows]).astype(np.int64)
        labels = np.where(np.stack([row.target for row in rows]), ids, IGNORED)
        return torch.from_numpy(ids).to(self._device), torch.from_numpy(labels).to(self._device)


def synchronise(device: str) -> None:
    """Waits until the device has done what it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
