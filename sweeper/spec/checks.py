"""What spans several keys of a spec: `check` finds every such mistake, `resolve` fills in what `auto` means.

Each check is a small generator that gets the spec and `trust`, which says whether a path is sound: a section that pydantic
refused must not bring mistakes that follow from it.
Does not know files, models, devices or databases. Cost: milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from importlib.util import find_spec

from sweeper.errors import Problem, nearest
from sweeper.spec.check_space import Trust, bad_targets, check_search, check_space
from sweeper.spec.metrics import METRICS, Direction, default_metric, is_function
from sweeper.spec.models import SearchSpec, SweepSpec
from sweeper.spec.translate import came

Check = Callable[[SweepSpec, Trust], Iterator[Problem]]

_FUNCTION = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")  # as data reads templates
_COLUMNS = {"classify": ("text", "label"), "instruct": ("prompt", "completion"), "text": ("text",), "chat": ("messages",)}
_EXTRAS = {"tensorboard": "tensorboard", "wandb": "wandb", "comet": "comet_ml"}
_SCHEMES = ("sqlite", "postgresql", "mysql", "mariadb")


def check(spec: SweepSpec, broken: Collection[str] = ()) -> list[Problem]:
    """Every mistake that spans keys, in the order of the sections. `broken` paths, and what hangs on them, are passed over."""

    def trust(path: str) -> bool:
        return not any(path == bad or path.startswith(bad + ".") or bad.startswith(path + ".") for bad in broken)

    return [problem for section in _CHECKS for problem in section(spec, trust)]


def resolve(spec: SweepSpec) -> SweepSpec:
    """`spec` with metric and direction of its objective as lists, without `auto`, and several metrics without pruning.

    Resolving twice changes nothing.
    """
    metrics = [default_metric(spec.data.task) if metric == "auto" else metric for metric in spec.objective.metrics]
    given = spec.objective.direction
    directions: list[Direction]
    if isinstance(given, list):
        directions = list(given)
    elif given == "auto":
        directions = [METRICS[metric].direction if metric in METRICS else "maximize" for metric in metrics]
    else:
        directions = [given for _ in metrics]
    objective = spec.objective.model_copy(update={"metric": metrics, "direction": directions})
    search = _unpruned(spec.search) if len(metrics) > 1 else spec.search
    return spec.model_copy(update={"objective": objective, "search": search})


def _unpruned(search: SearchSpec) -> SearchSpec:
    """`search` of several metrics: a trial that is behind in one may lead in another, so none is stopped unless asked for."""
    collapse = search.collapse
    if "enabled" not in collapse.model_fields_set:
        collapse = collapse.model_copy(update={"enabled": False})
    pruner = search.pruner if "pruner" in search.model_fields_set else "none"
    return search.model_copy(update={"pruner": pruner, "collapse": collapse})


def _data(spec: SweepSpec, trust: Trust) -> Iterator[Problem]:
    data, task = spec.data, spec.data.task
    if not trust("data.task"):
        return
    for column in data.columns.model_fields_set if trust("data.columns") else ():
        if getattr(data.columns, column) is not None and column not in _COLUMNS[task]:
            yield Problem(
                f"data.columns.{column}",
                f"task {task} reads no {column} column; it reads: {', '.join(_COLUMNS[task])}; remove it or change data.task",
            )
    if data.template is not None and task == "chat" and trust("data.template"):
        yield Problem("data.template", "task chat uses the model's own chat template; remove it, or change data.task")
    if data.chat_template and task not in ("classify", "instruct") and trust("data.chat_template"):
        yield Problem("data.chat_template", f"task {task} has no prompt to wrap; it is for classify and instruct; remove it")
    if data.labels is not None and trust("data.labels"):
        if task != "classify":
            yield Problem("data.labels", f"task {task} has no labels; they are for classify; remove them or change data.task")
        words = list(data.labels.values() if isinstance(data.labels, dict) else data.labels)
        if len(set(words)) < 2:
            yield Problem("data.labels", f"{len(set(words))} distinct label came, but a classification needs at least two")
        elif isinstance(data.labels, list) and len(set(words)) < len(words):
            twice = next(word for word in words if words.count(word) > 1)
            yield Problem("data.labels", f"{twice!r} stands twice; name each label once")
        if any(not word.strip() for word in words):
            yield Problem("data.labels", "an empty label came, but the model must have a word to answer; write one")


def _template(spec: SweepSpec, trust: Trust) -> Iterator[Problem]:
    template = spec.data.template
    if template is None or not trust("data.template"):
        return
    columns: list[str] = []
    for match in _PIECE.finditer(template):
        if match[0] in ("{", "}"):
            where = f"a lone {match[0]!r} came at character {match.start() + 1}"
            yield Problem("data.template", f"{where}; write {match[0] * 2!r} for a brace, or {{column}} for a column")
            return
        if match[1] is not None:
            columns.append(match[1].strip())
    if not columns:
        yield Problem("data.template", "it names no column, so every prompt would be the same; write e.g. 'Review: {text}\\nMood:'")
    elif "" in columns:
        yield Problem("data.template", "empty braces {} came; write the column's name in them, e.g. {text}")


def _split(spec: SweepSpec, trust: Trust) -> Iterator[Problem]:
    split = spec.data.split
    if not trust("data.split"):
        return
    used = {"group": ("column",), "time": ("column",), "column": ("column", "names"), "files": ("validation_path", "test_path")}
    for key in ("column", "names", "validation_path", "test_path"):
        if getattr(split, key) is not None and key not in used.get(split.by, ()):
            fitting = " or ".join(by for by, keys in used.items() if key in keys)
            yield Problem(f"data.split.{key}", f"a split by {split.by} has no {key}; remove it, or write by: {fitting}")
    if split.by == "files" and spec.data.hub is not None:
        yield Problem(
            "data.split.by", "files came, but a hub data set has no files beside it; split by hash, group, column or time"
        )
    for side, values in (split.names or {}).items():
        if side not in ("train", "validation", "test"):
            yield Problem(f"data.split.names.{side}", f"unknown side {side!r}; {nearest(side, ('train', 'validation', 'test'))}")
        elif not values:
            yield Problem(f"data.split.names.{side}", "no values came; list those of the column that are this side")
    for side in ("train", "validation"):
        if split.by == "column" and split.names and side not in split.names:
            yield Problem("data.split.names", f"no {side} came, but training and validation rows are needed; add {side}: [...]")
    values_twice = [value for values in (split.names or {}).values() for value in values]
    for value in dict.fromkeys(value for value in values_twice if values_twice.count(value) > 1):
        yield Problem("data.split.names", f"{value!r} stands on two sides; a row can be on one side only")


def _training(spec: SweepSpec, trust: Trust) -> Iterator[Problem]:
    training = spec.training
    if training.method == "full" and training.base != "full" and trust("training.method") and trust("training.base"):
        yield Problem(
            "training.base",
            f"{training.base} came with method: full, but what is trained cannot be quantised; use base: full or method: lora",
        )
    if training.method == "full" and training.layers != "all" and trust("training.method") and trust("training.layers"):
        yield Problem(
            "training.layers",
            f"{training.layers} came with method: full, which trains every weight; use layers: all or method: lora",
        )
    message = bad_targets(training.targets)
    if message is not None and trust("training.targets"):
        yield Problem("training.targets", message)
    length, chunk = training.max_length, training.chunk_tokens
    if (
        length is not None
        and chunk is not None
        and chunk < length
        and trust("training.chunk_tokens")
        and trust("training.max_length")
    ):
        yield Problem(
            "training.chunk_tokens",
            f"{chunk} came, but a row may have {length} tokens (training.max_length) and must fit; raise it to {length}",
        )


def _objective(spec: SweepSpec, trust: Trust) -> Iterator[Problem]:
    objective, metrics = spec.objective, spec.objective.metrics
    if trust("objective.metric"):
        if not metrics:
            yield Problem("objective.metric", f"an empty list came; name at least one metric: {', '.join(METRICS)}")
        for metric in metrics:
            if not (metric == "auto" and isinstance(objective.metric, str)):
                yield from _metric("objective.metric", metric, spec, trust)
        if len(set(metrics)) < len(metrics):
            yield Problem("objective.metric", "a metric stands twice; name each once")
        if objective.at == "best" and len(metrics) > 1 and trust("objective.at"):
            yield Problem(
                "objective.at", f"best came with {len(metrics)} metrics, which need not be best at once; use at: last or one metric"
            )
        if trust("objective.direction"):
            yield from _directions(spec)
    for metric, bound in objective.constraints.items():
        yield from _metric(f"objective.constraints.{metric}", metric, spec, trust)
        if bound.min is not None and bound.max is not None and bound.min > bound.max:
            yield Problem(
                f"objective.constraints.{metric}", f"min is {bound.min} and max is {bound.max}, but min must not be above max"
            )


def _metric(path: str, metric: str, spec: SweepSpec, trust: Trust) -> Iterator[Problem]:
    task = spec.data.task
    if is_function(metric):
        if not _FUNCTION.match(metric):
            yield Problem(path, f"{metric!r} came, but a function is written package.module:function, e.g. my_metrics:f_beta")
    elif metric not in METRICS:
        yield Problem(path, f"unknown metric {metric!r}; {nearest(metric, METRICS)}, or a function as package.module:function")
    elif trust("data.task") and task not in METRICS[metric].tasks:
        possible = ", ".join(name for name, info in METRICS.items() if task in info.tasks)
        needed = " or ".join(METRICS[metric].tasks)
        yield Problem(
            path, f"{metric} needs task {needed}, but data.task is {task}; for {task} there are: {possible}, or a function of yours"
        )


def _directions(spec: SweepSpec) -> Iterator[Problem]:
    given, metrics = spec.objective.direction, spec.objective.metrics
    if isinstance(given, list) and len(given) != len(metrics):
        yield Problem("objective.direction", f"{len(given)} came for {len(metrics)} metrics; give one for each, or leave it out")
        return
    for index, metric in enumerate(metrics):
        direction = given[index] if isinstance(given, list) else given
        if metric in METRICS and direction not in ("auto", METRICS[metric].direction):
            right = METRICS[metric].direction
            yield Problem(
                "objective.direction",
                f"{direction} came for {metric}, which must be {right}d; leave direction out or write {right}",
            )
        elif is_function(metric) and direction == "auto":
            yield Problem(
                "objective.direction", f"is missing for {metric}; whether more is better cannot be told: write maximize or minimize"
            )


def _executor(spec: SweepSpec, trust: Trust) -> Iterator[Problem]:
    executor = spec.executor
    if not trust("executor"):
        return
    if executor.kind == "local":
        for key, given in (
            ("address", executor.address is not None),
            ("storage_path", executor.storage_path is not None),
            ("workers", (executor.workers or 1) > 1),
            ("gpus", (executor.gpus or 0) > 1),
        ):
            if given:
                yield Problem(
                    f"executor.{key}",
                    f"{getattr(executor, key)} came, but kind: local trains in one engine in this process; "
                    "remove it or use kind: packed",
                )
    if executor.kind == "packed" and (executor.gpus or 0) > 1:
        yield Problem(
            "executor.gpus", f"{executor.gpus:g} came, but an engine lives on one GPU; write 1 or less, and use workers for more"
        )
    if executor.kind == "tune" and (executor.slots or 1) > 1:
        yield Problem("executor.slots", f"{executor.slots} came, but kind: tune trains one trial per worker; remove it")
    if spec.training.method == "full" and (executor.slots or 1) > 1 and trust("training.method"):
        yield Problem(
            "executor.slots",
            f"{executor.slots} came with method: full, whose trials cannot share a model; remove it or use method: lora",
        )
    if executor.gpus is not None and executor.gpus > 1 and executor.gpus != int(executor.gpus):
        yield Problem(
            "executor.gpus", f"{executor.gpus} came, but above 1 only whole GPUs can be given; write {int(executor.gpus)}"
        )


def _deterministic(spec: SweepSpec, trust: Trust) -> Iterator[Problem]:
    executor, path = spec.executor, "search.deterministic"
    if not spec.search.deterministic or not trust(path) or not trust("executor"):
        return
    if executor.kind == "tune":
        yield Problem(path, "true came, but kind: tune decides in the order in which workers happen to report; use packed or local")
    elif spec.training.method == "full" and executor.kind != "local" and trust("training.method"):
        yield Problem(path, "true came with method: full, whose workers report in any order; use executor.kind: local")
    elif executor.address is not None and executor.workers is None:
        yield Problem(
            "executor.workers", "is missing, but with search.deterministic on a cluster the number of engines must be given; add it"
        )


def _tracking(spec: SweepSpec, trust: Trust) -> Iterator[Problem]:
    if not trust("tracking"):
        return
    for index, tracker in enumerate(spec.tracking):
        path, kind = f"tracking.{index}", tracker.kind
        if any(other.kind == kind for other in spec.tracking[:index]):
            yield Problem(path, f"{kind} stands twice; each kind of tracker can be used once")
        if kind in _EXTRAS and find_spec(_EXTRAS[kind]) is None:
            yield Problem(path, f"{kind} came, but it is not installed; run: pip install 'sweeper[{kind}]'")
        if tracker.uri is not None and kind in ("wandb", "comet"):
            yield Problem(f"{path}.uri", f"{kind} takes no uri; it is for mlflow and tensorboard; remove it")
        if tracker.mode == "offline" and kind not in ("wandb", "comet"):
            yield Problem(f"{path}.mode", f"{kind} has no offline mode; it is for wandb and comet; remove it")
        if kind == "mlflow" and tracker.uri is not None and not _is_mlflow_store(tracker.uri):
            yield Problem(
                f"{path}.uri",
                f"{came(tracker.uri)} came, but MLflow keeps no folders; write a server (http://...) or a database (sqlite:///mlflow.db)",
            )


def _is_mlflow_store(uri: str) -> bool:
    return uri.startswith("databricks") or ("://" in uri and not uri.startswith("file:"))


def _storage(spec: SweepSpec, trust: Trust) -> Iterator[Problem]:
    url = spec.storage
    if url is None or not trust("storage"):
        return
    scheme, found, rest = url.partition("://")
    family = scheme.partition("+")[0]
    if not found:
        yield Problem(
            "storage", "this is no database URL; write e.g. sqlite:///study.db or postgresql+psycopg://user:${PASSWORD}@host/name"
        )
    elif family not in _SCHEMES:
        yield Problem("storage", f"unknown database {family!r}; {nearest(family, _SCHEMES)}")
    elif family == "sqlite" and rest.strip("/") in ("", ":memory:"):
        yield Problem("storage", "a database in memory came, but a study must outlive its driver; write e.g. sqlite:///study.db")


_CHECKS: tuple[Check, ...] = (
    _data,
    _template,
    _split,
    _training,
    check_space,
    check_search,
    _objective,
    _executor,
    _deterministic,
    _tracking,
    _storage,
)
