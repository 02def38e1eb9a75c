"""One trial in a slot: what it is, where it stands, and the rules that need nothing but its own numbers.

Divergence: a trial fails when the loss of a batch, its gradient or its validation loss is not finite, or when the loss of a batch
exceeds both EXPLODED times its first batch's and EXPLODED_NATS times the loss of guessing (the logarithm of the vocabulary).
Does not know the engine, the scheduler or the depot. Costs nothing.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, field

from torch import Tensor

from sweeper.engine.batch import Batch, Batches
from sweeper.engine.checkpoint import Measured, Progress
from sweeper.engine.evaluate import Evaluation
from sweeper.engine.optimizer import Row
from sweeper.engine.params import Params
from sweeper.engine.schedules import factor, total_steps
from sweeper.errors import TrialError
from sweeper.records import Ending, Outcome, Report, ReportKind, TrialSpec

EXPLODED = 20.0
EXPLODED_NATS = 3.0


@dataclass
class Running:
    """A trial in `slot`. `checkpoints` are the names of its latest ones, oldest first; times are of the monotonic clock."""

    spec: TrialSpec
    slot: int
    params: Params
    row: Row
    batches: Batches
    progress: Progress
    best_weights: Tensor | None = None
    batch: Batch | None = None
    losses: dict[int, float] = field(default_factory=dict)  # of the batch, by chunk
    evaluation: Evaluation | None = None
    measured: Measured | None = None  # of the evaluation just done, for further numbers due at the same examples
    checkpoints: deque[str] = field(default_factory=deque)
    checkpointed: float = 0.0
    reported: float = 0.0
    reported_piece: int = 0  # of the engine's count
    untold: str | None = None  # a checkpoint that the next report is to name

    @property
    def finished(self) -> bool:
        """Whether the budget is used up."""
        return self.progress.examples >= self.spec.examples

    def learning_rate(self) -> float:
        """For the step to come."""
        total = total_steps(self.spec.examples, self.params.batch_size)
        return self.params.learning_rate * factor(self.params.schedule, self.progress.steps, total, self.params.warmup)

    def check_loss(self, loss: float, vocabulary: int) -> None:
        """Raises TrialError if `loss` (mean over a batch's targets) says that the trial has diverged."""
        where = f"at step {self.progress.steps + 1} ({self.progress.examples} examples seen)"
        if not math.isfinite(loss):
            raise TrialError(f"the training loss is {loss} {where}; a lower learning rate may help")
        first = self.progress.first_loss
        if first is not None and loss > max(EXPLODED * first, EXPLODED_NATS * math.log(vocabulary)):
            raise TrialError(
                f"the training loss exploded to {loss:.4g} {where}, from {first:.4g} at first; a lower learning rate may help"
            )

    def count_step(self, batch: Batch, loss: float, learning_rate: float, norm: float) -> None:
        """A step was taken: counts it, and notes which evaluations are due."""
        p = self.progress
        p.steps += 1
        p.examples += len(batch.rows)
        p.tokens += sum(batch.sizes)
        p.first_loss = loss if p.first_loss is None else p.first_loss
        p.interval_loss += loss
        p.interval_steps += 1
        p.learning_rate, p.gradient_norm = learning_rate, norm
        while p.done < len(self.spec.evaluations) and (self.finished or self.spec.evaluations[p.done] <= p.examples):
            p.due.append(self.spec.evaluations[p.done])
            p.done += 1
        if self.finished and not p.due:
            p.due.append(self.spec.examples)

    def is_final(self, nominal: int) -> bool:
        """Whether the evaluation `nominal` is the last of the full budget."""
        return self.finished and nominal == self.progress.due[-1]

    def is_rung(self, nominal: int) -> bool:
        """Whether the pruner decides at `nominal`."""
        return nominal in self.spec.rungs and not self.is_final(nominal)

    def train_metrics(self) -> dict[str, float]:
        """Training loss (as optimised, so with label smoothing) since the last evaluation, and the last step's rate and norm.

        `train/chunk_tokens` is there only where memory did not suffice for the study's own: from then on the trial's numbers
        may differ from another run's by rounding and dropout masks.
        """
        p = self.progress
        if p.interval_steps == 0:
            return {}
        return {
            "train/loss": p.interval_loss / p.interval_steps,
            "train/learning_rate": p.learning_rate,
            "train/grad_norm": p.gradient_norm,
            **({"train/chunk_tokens": float(self.batches.chunk_tokens)} if p.chunk_tokens is not None else {}),
        }

    def report(
        self, kind: ReportKind, nominal: int, worker: str, measured: Measured | None = None, checkpoint: str | None = None
    ) -> Report:
        """Where the trial stands now, with the metrics of `measured` if an evaluation is reported."""
        p = self.progress
        return Report(
            trial=self.spec.number,
            kind=kind,
            nominal=nominal,
            examples=p.examples,
            step=p.steps,
            time_ms=int(time.time() * 1000),
            metrics={**self.train_metrics(), **(measured.metrics if measured is not None else {})},
            attempt=self.spec.attempt,
            outcomes=measured.outcomes if measured is not None else None,
            checkpoint=checkpoint,
            rows=self.evaluation.count if measured is not None and self.evaluation is not None else 0,
            train_seconds=p.train_seconds,
            evaluate_seconds=p.evaluate_seconds,
            tokens=p.tokens,
            worker=worker,
        )

    def outcome(self, ending: Ending, reason: str, worker: str, checkpoint: str | None, adapter: str | None) -> Outcome:
        """How it ended, with the metrics of its best evaluation if it completed and one was kept, else of its last."""
        p = self.progress
        measured = p.best if ending is Ending.COMPLETED and p.best is not None else p.last
        return Outcome(
            ending=ending,
            reason=reason,
            metrics=dict(measured.metrics) if measured is not None else {},
            nominal=measured.nominal if measured is not None else 0,
            examples=p.examples,
            adapter=adapter,
            checkpoint=checkpoint,
            outcomes=measured.outcomes if measured is not None else None,
            train_seconds=p.train_seconds,
            evaluate_seconds=p.evaluate_seconds,
            tokens=p.tokens,
            worker=worker,
        )
