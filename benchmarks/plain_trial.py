"""One trial of the yardstick: HF Trainer and PEFT inside a class Trainable whose worker is reused.

Purpose: what a careful user writes. The base model is read once per worker from safetensors, mapped; a trial wraps it in a LoRA
adapter and unwraps it at its end. The Trainer runs in a thread of the worker, and each `step` lets it go on to its next
evaluation: that keeps optimizer and schedule alive without a checkpoint at every evaluation.
Does not know Sweeper's engine; it reads the same token rows and is asked for the same numbers at the same examples.
Fair where it could be unfair: batches grouped by length, padding only to the longest row of a batch, one forward pass per
validation row (the class with the best first token wins) where Sweeper scores every label to its end, no logging, no saving.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray import tune
from torch.utils.data import Dataset, Subset

from sweeper.data.tokens import TokenSet
from sweeper.engine.schedules import total_steps
from sweeper.engine.targets import resolve_targets
from sweeper.errors import UserError
from sweeper.study.plan import StudyPlan

IGNORED = -100
EVALUATION_BATCH = 16
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


@dataclass(frozen=True)
class PlainSetup:
    """What all trials of the yardstick share: the study's model, rows, clocks and number of validation rows."""

    model: str
    train: str
    validation: str
    dtype: str
    plan: StudyPlan
    rows_between: int  # validation rows read between rungs
    rows_full: int  # at rungs and at the end
    threads: int
    amp: bool = False  # the Trainer's own switch bf16: weights in `dtype`, products in bf16
    began: float = 0.0  # Unix seconds at which the sweep began


class PlainTrial(tune.Trainable):  # type: ignore[misc]
    """Reports `nominal` (examples), loss, accuracy of classes, and seconds: of the worker's start, of training, of evaluation."""

    def setup(self, config: dict[str, Any], setup: PlainSetup | None = None) -> None:
        """Reads model and rows, once per worker."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        assert setup is not None
        torch.set_num_threads(setup.threads)
        self._shared = setup
        self._base = AutoModelForCausalLM.from_pretrained(setup.model, dtype=_DTYPES[setup.dtype], use_safetensors=True)
        self._tokenizer = AutoTokenizer.from_pretrained(setup.model)
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._train, self._validation = Rows(Path(setup.train)), Rows(Path(setup.validation))
        self._ready = time.time() - setup.began
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial in the same worker."""
        self._end()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Trains to the next evaluation and reports it."""
        return {**self._run.next_report(), "start_seconds": self._ready}

    def cleanup(self) -> None:
        """Ends a trial that was stopped half-way."""
        self._end()

    def _begin(self, config: Mapping[str, Any]) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import set_seed

        plan = self._shared.plan
        params = {**plan.defaults, **config.get("configuration", config)}
        set_seed(plan.search.seed)
        names = [name for name, module in self._base.named_modules() if isinstance(module, torch.nn.Linear)]
        head = self._base.get_output_embeddings()
        names = [name for name in names if self._base.get_submodule(name) is not head]
        adapter = LoraConfig(
            r=int(params["rank"]),
            lora_alpha=float(params["alpha"]),
            lora_dropout=float(params["dropout"]),
            target_modules=list(resolve_targets(str(params["targets"]), self._base.config.model_type, names)),
            task_type="CAUSAL_LM",
        )
        self._model = get_peft_model(self._base, adapter)
        self._run = TrainerRun(self._model, self._tokenizer, self._train, self._validation, params, self._shared, self.logdir)

    def _end(self) -> None:
        self._run.stop()
        self._base = self._model.unload()
        self._run.forget()
        gc.collect()
        _trim()


def _trim() -> None:
    """Gives freed memory back, lest what one trial freed and the next one needs add up: eight trials once filled 24 GB."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class TrainerRun:
    """A Trainer in a thread, which waits at each evaluation until it is asked for the next."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        train: Rows,
        validation: Rows,
        params: Mapping[str, Any],
        shared: PlainSetup,
        folder: str,
    ) -> None:
        self._shared = shared
        self._reports: queue.Queue[dict[str, Any] | BaseException] = queue.Queue()
        self._turns: queue.Queue[bool] = queue.Queue()  # True: go on; False: end
        self._started = time.perf_counter()
        self._evaluating = 0.0
        self._waiting = 0.0
        self._trainer = self._build(model, tokenizer, train, validation, params, folder)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._fresh = True

    def next_report(self) -> dict[str, Any]:
        """What the next evaluation found; raises what the Trainer raised."""
        if self._fresh:
            self._thread.start()
            self._fresh = False
        else:
            self._turns.put(True)
        report = self._reports.get()
        if isinstance(report, BaseException):
            raise report
        return report

    def stop(self) -> None:
        """Ends the Trainer at the evaluation it waits at, and its thread."""
        if not self._fresh:
            self._turns.put(False)
            self._thread.join()

    def forget(self) -> None:
        """Lets go of the Trainer, whose callbacks and accelerator refer to each other and to the model."""
        del self._trainer

    def arrived(self, nominal: int, step: int, metrics: Mapping[str, float], last: bool) -> bool:
        """Called by the Trainer's thread after an evaluation; waits, and says whether to go on."""
        self._evaluating += metrics["eval_runtime"]
        total = time.perf_counter() - self._started - self._waiting
        report = {
            "nominal": nominal,
            "optimizer_steps": step,
            "loss": metrics["eval_loss"],
            **({"accuracy": metrics["eval_accuracy"]} if "eval_accuracy" in metrics else {}),
            "train_seconds": total - self._evaluating,
            "evaluate_seconds": self._evaluating,
            "done": last,
        }
        self._reports.put(report)
        since = time.perf_counter()
        go_on = self._turns.get()
        self._waiting += time.perf_counter() - since
        return go_on

    def _work(self) -> None:
        torch.set_num_threads(self._shared.threads)  # a thread of its own starts with OpenMP's default
        try:
            self._trainer.train()
        except BaseException as error:
            self._reports.put(error)

    def _build(self, model: Any, tokenizer: Any, train: Rows, validation: Rows, params: Mapping[str, Any], folder: str) -> Any:
        from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainingArguments

        budget = self._shared.plan.budget(params)
        batch = int(params["batch_size"])
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=total_steps(budget, batch),
            per_device_train_batch_size=batch,
            per_device_eval_batch_size=EVALUATION_BATCH,
            learning_rate=float(params["learning_rate"]),
            weight_decay=float(params["weight_decay"]),
            adam_beta1=float(params["beta1"]),
            adam_beta2=float(params["beta2"]),
            max_grad_norm=float(params["clip"]),
            label_smoothing_factor=float(params["label_smoothing"]),
            lr_scheduler_type=_SCHEDULES[str(params["schedule"])],
            warmup_steps=float(params["warmup"]),
            train_sampling_strategy="group_by_length",
            seed=self._shared.plan.search.seed,
            bf16=self._shared.amp,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            log_level="error",
        )
        scorer = FirstToken(validation.tokens.info.label_ids)
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=train,
            eval_dataset=validation,
            data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED),
            compute_metrics=scorer.accuracy if scorer.first else None,
            preprocess_logits_for_metrics=scorer.scores if scorer.first else None,
        )
        if not scorer.first:
            trainer.args.prediction_loss_only = True
        trainer.remove_callback(PrinterCallback)
        evaluations, rungs = self._shared.plan.clock(budget)
        trainer.add_callback(_evaluations(trainer, self, evaluations, rungs, batch, self._shared, validation))
        return trainer


def _evaluations(
    trainer: Any,
    run: TrainerRun,
    evaluations: Sequence[int],
    rungs: Sequence[int],
    batch: int,
    shared: PlainSetup,
    validation: Rows,
) -> Any:
    """The callback that evaluates at the first optimizer step at or past each nominal number."""
    from transformers import TrainerCallback

    last = evaluations[-1]

    class Evaluations(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.due, self.now = list(evaluations), 0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seen = state.global_step * batch if state.global_step < state.max_steps else last
            reached = [nominal for nominal in self.due if nominal <= seen]
            if reached:
                self.now, self.due = reached[-1], self.due[len(reached) :]
                full = self.now == last or any(rung in reached for rung in rungs)
                trainer.eval_dataset = Subset(validation, range(shared.rows_full if full else shared.rows_between))
                control.should_evaluate = True

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Mapping[str, float], **_: Any) -> None:
            if not run.arrived(self.now, state.global_step, metrics, self.now == last):
                control.should_training_stop = True

    return Evaluations()


class Rows(Dataset[dict[str, list[int]]]):
    """A token set as the Trainer wants it: input_ids, attention_mask, and labels that are -100 where nothing is predicted."""

    def __init__(self, folder: Path) -> None:
        self.tokens = TokenSet(folder)

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        row = self.tokens.row(index)
        labels = np.where(row.target, row.ids, IGNORED)
        return {"input_ids": row.ids.tolist(), "attention_mask": [1] * len(row.ids), "labels": labels.tolist()}


class FirstToken:
    """Classes by the first token of their label, so that one forward pass per row is enough.

    Raises UserError if two labels begin with the same token: then this way would not tell them apart.
    """

    def __init__(self, label_ids: Sequence[Sequence[int]]) -> None:
        self.first = [ids[0] for ids in label_ids]
        if len(set(self.first)) < len(self.first):
            raise UserError("two labels begin with the same token, but the yardstick tells classes by it; choose other label words")

    def scores(self, logits: Any, labels: torch.Tensor) -> torch.Tensor:
        """Logits [B, L, vocabulary] -> [B, classes] at the position before each row's first label token."""
        logits = logits[0] if isinstance(logits, tuple) else logits
        before = (labels != IGNORED).int().argmax(1) - 1
        at = logits[torch.arange(len(labels), device=labels.device), before]
        found: torch.Tensor = at[:, self.first].float()
        return found

    def accuracy(self, evaluated: Any) -> dict[str, float]:
        """Share of rows whose best-scored class is the row's."""
        labels = np.asarray(evaluated.label_ids)
        first = labels[np.arange(len(labels)), (labels != IGNORED).argmax(1)]
        predicted = np.asarray(self.first)[np.asarray(evaluated.predictions).argmax(1)]
        return {"accuracy": float(np.mean(predicted == first))}


logging.getLogger("transformers").setLevel(logging.ERROR)
