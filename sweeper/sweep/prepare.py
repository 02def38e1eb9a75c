"""From a spec to everything a sweep needs before its first trial: model folder, token files, plan, engine set-up.

Purpose: the one path that `run` and `validate --data` share. Does not know how trials run or are stored.
Cost: converting a GGUF file (once, 20-30 s for 135M parameters) and tokenising (once per fingerprint); afterwards a second,
most of it the import of transformers.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from sweeper.data.build import Bundle, build
from sweeper.data.tokenizer import load_tokenizer
from sweeper.data.tokens import TokenSet
from sweeper.engine.base import EngineSetup
from sweeper.errors import DataError
from sweeper.executors.factory import Choice, choose
from sweeper.spec.check_space import largest, largest_batch
from sweeper.spec.identity import Identity, document, identity
from sweeper.spec.metrics import METRICS, is_function
from sweeper.spec.models import SweepSpec, TrainingSpec
from sweeper.spec.space import ends
from sweeper.study.budget import Device
from sweeper.study.plan import StudyPlan, plan_study
from sweeper.study.read import StudyReader
from sweeper.sweep.home import Home
from sweeper.sweep.order import Order, promises, settle

Progress = Callable[[str, int, int | None], None]
Notice = Callable[[str], None]

_VERSIONED = ("sweeper", "torch", "transformers", "peft", "optuna", "ray", "mlflow", "sqlalchemy")


@dataclass(frozen=True)
class Prepared:
    """A spec made ready. `training` is resolved: dtype, max_length and chunk_tokens are numbers, and stay so for the study."""

    spec: SweepSpec
    home: Home
    storage: str
    model: Path
    bundle: Bundle
    identity: Identity
    training: TrainingSpec
    plan: StudyPlan
    choice: Choice  # the executor
    order: Order | None  # search.deterministic

    def arranged(self) -> SweepSpec:
        """The spec with what a fixed order needs settled."""
        return self.order.applied(self.spec) if self.order is not None else self.spec

    def engine_setup(self) -> EngineSetup:
        """What every engine of this study is given; threads and worker are the executor's to fill in."""
        spec = self.spec
        metrics = tuple(dict.fromkeys([*spec.objective.metrics, *_always(spec.data.task), *spec.objective.constraints]))
        return EngineSetup(
            study=spec.name,
            model=str(self.model),
            revision=spec.model.revision,
            trust_remote_code=spec.model.trust_remote_code,
            train=self.bundle.train,
            validation=self.bundle.validation,
            training=self.training,
            evaluate=spec.evaluate.model_copy(update={"every": self.plan.evaluate_every}),
            metrics=metrics,
            objective=spec.objective.metrics[0],
            maximize=self.plan.directions[0] == "maximize",
            at=spec.objective.at,
            checkpoint_seconds=float(spec.checkpoint.every),
            full_examples=self.plan.full,
            rungs=max(1, len(self.plan.rungs)),
            largest_rank=largest(spec, "rank", spec.training.rank),
            largest_dropout=max(
                [spec.training.dropout, *(v for v in ends(spec.space.get("dropout")) if isinstance(v, float | int))]
            ),
            searched_targets=tuple(str(v) for v in ends(spec.space.get("targets"))),
            device=device(spec),
            base_name=spec.model.name if _on_hub(spec.model.name) else str(self.model),
        )


def prepare(spec: SweepSpec, home: Home, progress: Progress | None = None, notice: Notice | None = None) -> Prepared:
    """Makes model and data ready and plans the study. Raises UserError for whatever the user can mend."""
    from transformers.utils.logging import disable_progress_bar

    from sweeper.engine.evaluate import plan as evaluation_plan
    from sweeper.engine.model import context_length, load_config, prepare_model

    home.create()
    _check_functions(spec)
    storage = spec.storage or home.default_storage
    if progress is not None:
        progress("model", 0, None)
    disable_progress_bar()
    model = prepare_model(spec.model, home.models)
    tokenizer = load_tokenizer(spec.model.model_copy(update={"name": str(model), "revision": None}))
    context = context_length(load_config(model, spec.model.trust_remote_code))
    bundle = build(spec, tokenizer, home.data, progress, context=context)
    _check_batches(spec, bundle)
    who = identity(spec, bundle.rows_fingerprint + bundle.tokens_fingerprint, model_fingerprint(model))
    stored = _stored(spec, storage, who)
    training = _training(spec, stored, model, bundle, notice)
    choice = choose(spec, model)
    order = settle(spec, choice, device(spec), stored, notice)
    for sentence in (*bundle.notices, *promises(spec, device(spec))):
        if notice is not None:
            notice(sentence)
    plan = plan_study(
        spec,
        identity=who,
        spec_document={
            **document(spec),
            "resolved": training.model_dump(mode="json"),
            **({"order": order.document()} if order is not None else {}),
            "facts": {"labels": list(bundle.labels), "counts": dict(bundle.counts), "longest": bundle.longest, "model": str(model)},
        },
        train_rows=bundle.counts["train"],
        chance=_chance(spec, bundle),
        data_fingerprint=bundle.tokens_fingerprint,
        versions=versions(),
    )
    ready = Prepared(spec, home, storage, model, bundle, who, training, plan, choice, order)
    if notice is not None:
        read = evaluation_plan(ready.engine_setup(), TokenSet(bundle.train).info, TokenSet(bundle.validation).info)
        rows = bundle.counts["validation"]
        if read.full < rows:
            notice(
                f"values are measured on {read.full} of {rows} validation rows, so that evaluation costs at most "
                f"{spec.evaluate.share:g} of training; to read more, raise evaluate.share under another name"
            )
    return ready


def _check_functions(spec: SweepSpec) -> None:
    """Imports the user's metric functions once, from the folder the command was started in, so that a wrong name costs nothing."""
    from sweeper.engine.metrics import check_function

    functions = [name for name in (*spec.objective.metrics, *spec.objective.constraints) if is_function(name)]
    if functions and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in functions:
        check_function(name)


def versions() -> dict[str, str]:
    """Versions that results depend on."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def model_fingerprint(model: Path) -> str:
    """Hash of a model folder: names and sizes of all files, content of the small ones, both ends of the large ones.

    Reading 2 MB of each weights file tells two trained models apart without reading gigabytes at every start.
    """
    end = 1 << 20
    digest = hashlib.blake2b(digest_size=16)
    if not model.is_dir():
        digest.update(str(model).encode())
        return digest.hexdigest()
    for path in sorted(p for p in model.rglob("*") if p.is_file() and not p.name.startswith(".")):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(model)}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(end))
            if size > 2 * end:
                file.seek(-end, 2)
                digest.update(file.read(end))
    return digest.hexdigest()


def _on_hub(name: str) -> bool:
    return not name.endswith(".gguf") and not Path(name).expanduser().exists()


def _always(task: str) -> tuple[str, ...]:
    """Metrics that cost nothing once rows are read, and that people look for in the tracker."""
    return tuple(name for name, info in METRICS.items() if task in info.tasks and not info.decode)


def _stored(spec: SweepSpec, storage: str, who: Identity) -> Mapping[str, object] | None:
    """The spec document of this very study, if it has begun."""
    reader = StudyReader.of(storage, spec.name)
    plan = reader.plan(spec.name) if reader is not None else None
    return plan.spec if plan is not None and plan.identity == who.hash else None


def _training(
    spec: SweepSpec, stored: Mapping[str, object] | None, model: Path, bundle: Bundle, notice: Notice | None
) -> TrainingSpec:
    """`auto` settings become numbers once; a study that exists already keeps its own."""
    from sweeper.engine.probe import resolve_training

    resolved = stored.get("resolved") if stored is not None else None
    if isinstance(resolved, Mapping):
        return TrainingSpec.model_validate(dict(resolved))
    training = resolve_training(
        spec.training,
        model,
        device=device(spec),
        threads=max(1, int(spec.executor.cpus)),
        trust_remote_code=spec.model.trust_remote_code,
        notice=notice,
        data=bundle.train,
        searched_targets=[str(targets) for targets in ends(spec.space.get("targets"))],
    )
    return training.model_copy(update={"max_length": bundle.max_length})


def device(spec: SweepSpec) -> str:
    """cuda where the driver sees a GPU and the spec does not say `gpus: 0`, else cpu."""
    import torch

    return "cuda" if torch.cuda.is_available() and spec.executor.gpus != 0 else "cpu"


def held_device(spec: SweepSpec) -> Device:
    """What one engine holds, for budgets and prices: its share of GPUs, else its cores.

    GPUs count where the driver sees one or the spec asks for them; those of workers that neither tells of count as cores.
    """
    gpus = spec.executor.gpus if spec.executor.gpus is not None else float(device(spec) == "cuda")
    return Device(gpus, "GPU") if gpus > 0 else Device(spec.executor.cpus, "core")


def _check_batches(spec: SweepSpec, bundle: Bundle) -> None:
    rows, largest = bundle.counts["train"], largest_batch(spec)
    where = "training.batch_size" if largest == spec.training.batch_size else "space.batch_size"
    if largest > rows:
        raise DataError(f"{where} is {largest}, but there are {rows} training rows; lower it to at most {rows} or add rows")


def _chance(spec: SweepSpec, bundle: Bundle) -> float | None:
    """The objective of a model that learned nothing, where that is known: accuracy of always naming the commonest class."""
    metric = spec.objective.metrics[0]
    if is_function(metric) or metric not in ("accuracy", "macro_f1"):
        return None
    counts = bundle.class_counts["validation"]
    total = sum(counts.values())
    if not total:
        return None
    share = max(counts.values()) / total
    return share if metric == "accuracy" else (2 * share / (1 + share)) / len(counts)
