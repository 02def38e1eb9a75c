"""The spec: what the user asked for, as frozen pydantic models. `schema: 1`.

Purpose: one checked object that every layer reads. `SweepSpec.model_validate` checks each section by itself; what spans
sections lies in `checks.py`, YAML and line numbers in `load.py`, the study's identity in `identity.py`.
Does not know: files, devices, or whether a model exists. Costs milliseconds.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from sweeper.spec.space import SEARCHABLE, Dimension, Strict, Value, dimension_from_yaml


class ModelSpec(Strict):
    """The base model: a hub id, a folder, or a GGUF file."""

    name: str = Field(min_length=1, description="hub id, folder, or path of a .gguf file")
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    trust_remote_code: bool = Field(False, description="run code that ships with the model; off unless asked")


class HubData(Strict):
    """A data set of the Hugging Face hub."""

    name: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None


class SplitSpec(Strict):
    """How rows are put into train, validation and test. By hash unless told: no seed, no order, so it never moves a test row."""

    by: Literal["hash", "group", "column", "time", "files"] = "hash"
    validation: float = Field(0.1, gt=0, lt=1, description="share of rows (hash, group, time)")
    test: float = Field(0.1, ge=0, lt=1, description="share of rows, sealed until the end (hash, group, time)")
    column: str | None = Field(None, description="group, time or side column (group, time, column)")
    names: dict[str, list[Value]] | None = Field(
        None, description="by column: which of its values are train, validation, test; default: their own names"
    )
    validation_path: str | None = Field(None, description="by files")
    test_path: str | None = Field(None, description="by files")

    @model_validator(mode="after")
    def _complete(self) -> SplitSpec:
        if self.by in ("group", "column", "time") and self.column is None:
            raise ValueError(f"by: {self.by} needs column, the name of the {self.by} column")
        if self.by == "files" and self.validation_path is None:
            raise ValueError("by: files needs validation_path, and test_path for a sealed test")
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} and test {self.test} leave no training rows; their sum must be below 1")
        return self


class LimitSpec(Strict):
    """At most so many rows of a side, the first by row hash, so that a limit is the same everywhere. Test is never limited."""

    train: int | None = Field(None, ge=1)
    validation: int | None = Field(None, ge=1)


class Columns(Strict):
    """Which columns hold what. `classify` reads text and label, `instruct` prompt and completion, `chat` messages, `text` text."""

    text: str | None = None
    label: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None


class DataSpec(Strict):
    """The rows: csv, jsonl or parquet by `path`, or a hub data set."""

    path: str | None = Field(None, description="csv, tsv, jsonl or parquet file, or a glob of such files")
    hub: HubData | None = None
    task: Literal["classify", "instruct", "text", "chat"]
    columns: Columns = Columns()
    template: str | None = Field(
        None,
        description="prompt with column names in braces, e.g. 'Review: {text}\\nSentiment:'; special tokens as the tokenizer's",
    )
    chat_template: bool = Field(
        False, description="wrap the prompt as a user turn of the tokenizer's chat template (classify, instruct)"
    )
    labels: dict[str, str] | list[str] | None = Field(
        None,
        description="classify: the labels, or value of the label column -> the words the model is to answer; default: as found",
    )
    too_long: Literal["refuse", "cut", "drop"] = Field("refuse", description="rows over training.max_length; always counted")
    split: SplitSpec = SplitSpec()
    limit: LimitSpec = LimitSpec()

    @field_validator("labels", mode="before")
    @classmethod
    def _numbers_as_text(cls, raw: Any) -> Any:
        return [str(label) if type(label) is int else label for label in raw] if isinstance(raw, list) else raw

    @model_validator(mode="after")
    def _one_source(self) -> DataSpec:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either path (a csv, tsv, jsonl or parquet file) or hub (a hub data set), and only one of them")
        return self


class TrainingSpec(Strict):
    """The default configuration (trial 0), and what is fixed for the study."""

    # Searchable; the values here are trial 0.
    learning_rate: float | None = Field(None, gt=0, description="default: 2e-4 for lora, 2e-5 for full")
    batch_size: int = Field(8, ge=1, description="rows per optimizer step")
    weight_decay: float = Field(0.0, ge=0)
    dropout: float = Field(0.0, ge=0, lt=1, description="LoRA dropout; full: the model's own dropout fields")
    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0, description="scale of the update is alpha / rank")
    targets: str = Field("all", description="all, attention, mlp, qv, or module names joined by commas")
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the trial's own budget")
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    clip: float = Field(1.0, ge=0, description="global gradient norm of the trial; 0 is off")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    epochs: float = Field(1.0, gt=0)
    # Fixed for a study.
    method: Literal["lora", "full"] = "lora"
    examples: int | None = Field(None, ge=1, description="budget in examples seen, in place of epochs")
    max_length: int | None = Field(None, ge=4, description="tokens per row; default: the model's context")
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    base: Literal["full", "int8", "nf4"] = Field("full", description="storage of the frozen base")
    layers: str = Field(
        "all", description="which layers carry adapters: all, or last N, whose frozen layers below are run once a row"
    )
    gradient_checkpointing: bool = False
    chunk_tokens: int | None = Field(None, ge=1, description="a batch is cut into chunks of at most so many tokens; resolved once")

    @field_validator("layers", mode="before")
    @classmethod
    def _all_or_last(cls, raw: Any) -> Any:
        words = str(raw).split()
        if words == ["all"]:
            return "all"
        if len(words) != 2 or words[0] != "last" or not words[1].isdecimal() or int(words[1]) < 1:
            raise ValueError(f"{raw!r} came, but it must be all, or last N with N of 1 or more, e.g. last 4")
        return f"last {int(words[1])}"

    def last_layers(self) -> int | None:
        """N of `layers: last N`; None where all layers carry adapters."""
        return None if self.layers == "all" else int(self.layers.split()[1])

    def default_learning_rate(self) -> float:
        """The learning rate of trial 0."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 2e-4 if self.method == "lora" else 2e-5


class CollapseSpec(Strict):
    """A trial has collapsed when its metric was above chance and fell back to chance for `evaluations` evaluations in a row."""

    enabled: bool = True
    evaluations: int = Field(2, ge=1)
    margin: float = Field(0.02, ge=0, description="how far from chance still counts as chance")


class BudgetSpec(Strict):
    """What a sweep may use in all its runs; when any of it is used up, running trials are saved and the winner is chosen.

    A GPU-hour is an hour in which a GPU trained or evaluated; without GPUs it is a core-hour.
    """

    time: str | float | None = Field(
        None, description="seconds of driver time, or 90s, 30m, 2h; trials that still run then are saved"
    )
    gpu_hours: float | None = Field(None, gt=0, description="hours of GPUs at work; of cores, where there is no GPU")
    money: float | None = Field(None, gt=0, description="what the GPU-hours may cost; needs price")
    price: float | None = Field(None, gt=0, description="price of one GPU-hour (core-hour), in the currency of money")

    @field_validator("time")
    @classmethod
    def _duration(cls, time: str | float | None) -> float | None:
        return None if time is None else seconds(time)

    @property
    def limits(self) -> bool:
        """Whether anything is limited."""
        return any(limit is not None for limit in (self.time, self.gpu_hours, self.money))


class SearchSpec(Strict):
    """How the space is searched and what is stopped early."""

    sampler: Literal["grid", "random", "tpe", "gp", "cmaes", "qmc"] = "tpe"
    startup_trials: int = Field(10, ge=1, description="random trials before tpe, gp or cmaes begin")
    pruner: Literal["none", "median", "percentile", "halving", "asha", "hyperband", "patience", "threshold"] = "halving"
    rungs: list[float] = Field(default=[0.1], description="shares of the study's largest budget at which the pruner decides")
    reduction: int = Field(3, ge=2, description="halving, hyperband: one in so many is kept")
    min_trials: int = Field(3, ge=1, description="trials that must have reached a rung before one is stopped there")
    percentile: float = Field(25.0, gt=0, lt=100, description="percentile: keep those better than this percentile")
    patience: int = Field(3, ge=1, description="patience: evaluations without a gain of min_delta")
    min_delta: float = Field(0.0, ge=0)
    lower: float | None = Field(None, description="threshold: stop below")
    upper: float | None = Field(None, description="threshold: stop above")
    collapse: CollapseSpec = CollapseSpec()
    trials: int | None = Field(20, ge=1, description="trials in all, trial 0 and enqueued ones included")
    time: str | float | None = Field(None, description="seconds, or 90s, 30m, 2h: no new trial begins after that")
    budget: BudgetSpec = BudgetSpec()
    seed: int = Field(0, ge=0)
    enqueue: list[dict[str, Value]] = Field(default=[], description="configurations to try first, right after trial 0")
    deterministic: bool = False

    @field_validator("rungs")
    @classmethod
    def _shares(cls, rungs: list[float]) -> list[float]:
        if any(not 0 < rung < 1 for rung in rungs) or rungs != sorted(set(rungs)):
            raise ValueError(f"rungs are {rungs}, but must be rising shares between 0 and 1, e.g. [0.1] or [0.1, 0.3]")
        return rungs

    @field_validator("time")
    @classmethod
    def _duration(cls, time: str | float | None) -> float | None:
        return None if time is None else seconds(time)


class Bound(Strict):
    """A bound on a metric; at least one of the two."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _some(self) -> Bound:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        return self


class ObjectiveSpec(Strict):
    """What is optimised: one metric or several, on validation rows. A metric is a name, or `package.module:function`."""

    metric: str | list[str] = "auto"
    direction: Literal["auto", "minimize", "maximize"] | list[Literal["minimize", "maximize"]] = "auto"
    at: Literal["last", "best"] = "last"
    constraints: dict[str, Bound] = Field(default={}, description="metric -> bound; a trial outside is not chosen")

    @property
    def metrics(self) -> list[str]:
        """The metrics as a list; `auto` is resolved by `checks.resolve`."""
        return [self.metric] if isinstance(self.metric, str) else list(self.metric)


class EvaluateSpec(Strict):
    """The evaluation clock and its price."""

    every: int | None = Field(None, ge=1, description="nominal examples between evaluations; default: a tenth of the full budget")
    share: float = Field(0.2, gt=0, description="evaluation may cost at most this share of training")
    rows: int | None = Field(None, ge=1, description="validation rows read between rungs; default: as the share allows")
    max_new_tokens: int = Field(64, ge=1, description="for metrics on decoded text")


class CheckpointSpec(Strict):
    """The checkpoint clock: at each rung, and every so often between."""

    every: str | float = Field(300.0, description="seconds, or 90s, 5m, 1h")

    @field_validator("every")
    @classmethod
    def _duration(cls, every: str | float) -> float:
        return seconds(every)


class ExecutorSpec(Strict):
    """Where trials run."""

    kind: Literal["auto", "local", "packed", "tune"] = Field(
        "auto",
        description="packed: engines that train many trials each; tune: one trial per worker; local: one engine in this process; "
        "auto: packed for LoRA on a model that it knows, else tune",
    )
    workers: int | None = Field(None, ge=1, description="packed: engines; tune: trials at once; default: what the resources allow")
    slots: int | None = Field(None, ge=1, description="packed, local: trials at once in one engine; default: measured at its start")
    memory: str | int | None = Field(
        None, description="packed, local: bytes that one engine may take, e.g. 8GB; default: what is free"
    )
    cpus: float = Field(1, gt=0, description="CPU cores per engine or worker")
    gpus: float | None = Field(
        None, ge=0, description="GPUs per engine or worker, fractions allowed; default: 1 where there is any, else 0"
    )
    address: str | None = Field(None, description="Ray cluster to join, e.g. auto or head:6379; default: a local one")
    storage_path: str | None = Field(
        None, description="folder or URL (fsspec) that driver and workers both open; default: through Ray"
    )

    @field_validator("memory")
    @classmethod
    def _size(cls, memory: str | int | None) -> int | None:
        return None if memory is None else size(memory)


class TrackerSpec(Strict):
    """Where results are shown."""

    kind: Literal["mlflow", "tensorboard", "wandb", "comet"] = "mlflow"
    uri: str | None = Field(None, description="mlflow: tracking URI; default: sqlite in the home. tensorboard: log folder")
    project: str | None = Field(None, description="experiment or project name; default: the study's name")
    mode: Literal["online", "offline"] = Field("online", description="wandb, comet")


class SweepSpec(Strict):
    """A whole sweep. Every section but name, model and data has defaults."""

    schema_: Literal[1] = Field(alias="schema")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    model: ModelSpec
    data: DataSpec
    training: TrainingSpec = TrainingSpec()
    space: dict[str, Dimension] = Field(default={}, description="searchable key of training -> range or list of values")
    search: SearchSpec = SearchSpec()
    objective: ObjectiveSpec = ObjectiveSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    groups: dict[str, Any] = Field(default={}, description="columns or term lists whose members results are compared between")
    acceptance: dict[str, Any] = Field(default={}, description="criteria the winner must meet, fixed before trial 0")
    executor: ExecutorSpec = ExecutorSpec()
    tracking: list[TrackerSpec] = Field(default=[TrackerSpec()], description="where results are shown; [] for nowhere")
    storage: str | None = Field(None, description="SQLAlchemy URL of the study database; default: study.db in the home")

    @field_validator("model", mode="before")
    @classmethod
    def _short_model(cls, raw: Any) -> Any:
        return {"name": raw} if isinstance(raw, str) else raw

    @field_validator("space", mode="before")
    @classmethod
    def _short_dimensions(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        return {key: dimension_from_yaml(value, SEARCHABLE.get(key)) for key, value in raw.items()}

    @field_validator("tracking", mode="before")
    @classmethod
    def _short_trackers(cls, raw: Any) -> Any:
        items = raw if isinstance(raw, list) else [raw]
        return [{"kind": item} if isinstance(item, str) else item for item in items]


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(duration: str | float) -> float:
    """Seconds of `90`, `90s`, `30m`, `2h` or `1d`. Raises ValueError for anything else, or for nothing above 0."""
    text = str(duration).strip().lower()
    unit = _UNITS.get(text[-1:])
    try:
        value = float(text[:-1]) * unit if unit is not None else float(text)
    except ValueError:
        raise ValueError(f"{duration!r} is no duration; write seconds, or e.g. 90s, 30m, 2h") from None
    if not value > 0:
        raise ValueError(f"{duration!r} is not above 0")
    return value


_SIZES = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?i?)B?", re.IGNORECASE)


def size(amount: str | int) -> int:
    """Bytes of `1000000`, `800MB`, `8GB` or `8GiB`. Raises ValueError for anything else, or for nothing above 0."""
    found = _SIZE.fullmatch(str(amount).strip())
    unit = _SIZES.get(found[2].capitalize()) if found else None
    if found is None or unit is None:
        raise ValueError(f"{amount!r} is no amount of memory; write bytes, or e.g. 800MB, 8GB, 8GiB")
    if not float(found[1]) > 0:
        raise ValueError(f"{amount!r} is not above 0")
    if not math.isfinite(float(found[1]) * unit):
        raise ValueError(f"{str(amount)[:20]}... is more than any machine has")
    return int(float(found[1]) * unit)
