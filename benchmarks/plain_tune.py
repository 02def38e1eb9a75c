"""The yardstick: a sweep as a careful user writes it today, with Ray Tune, OptunaSearch, ASHA and the HF Trainer.

    python -m benchmarks.plain_tune --spec search_spaces/demo.yaml [--trials N] [--quick] [--json FILE]

It reads a Sweeper spec and takes from it the same model, token rows, validation rows, evaluation clock, search space, default
configuration and budget, so that only the way of training differs. `--configurations FILE` (JSON: a list of mappings) trains
exactly those to their end, without search or pruning: for comparing speed. On CPUs there are two ways to share two cores; both
are measured and the faster one counts. Sweeper's own side is `sweeper run` on the same spec, or a later benchmark's.
Does not know: Sweeper's engine and executors. Cost: that of the sweep, twice; `--quick` shrinks it to a minute on a tiny model.
"""

from __future__ import annotations

import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.common import Goal, Measurement, add_output, finish
from benchmarks.plain_trial import PlainSetup, PlainTrial
from benchmarks.pool import Arrangement, arrangements, parse_arrangement
from sweeper.errors import UserError
from sweeper.records import ParamValue
from sweeper.spec.load import load_spec
from sweeper.spec.models import SweepSpec
from sweeper.spec.space import Dimension, FloatDimension, IntDimension
from sweeper.study.plan import StudyPlan

QUICK = ("data.limit.train=48", "data.limit.validation=32", "training.examples=48")
QUICK_TRIALS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the yardstick; returns the exit code."""
    import torch

    options = _parser().parse_args(arguments)
    try:
        spec = load_spec(options.spec, [*(QUICK if options.quick else ()), *options.set])
        with tempfile.TemporaryDirectory(prefix="plain-tune-") as scratch:
            home = options.home or Path(scratch) / "home"
            setup = replace(plain_setup(spec, home), amp=options.bf16)
            trials = options.trials or (QUICK_TRIALS if options.quick else spec.search.trials) or 20
            fixed = json.loads(options.configurations.read_text()) if options.configurations else None
            ways = options.arrangement or arrangements(torch.cuda.device_count())
            rows = [run(setup, way, trials, fixed, Path(scratch)) for way in ways]
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    best = min(rows, key=lambda row: float(row["seconds"]))
    for row in rows:
        row["counts"] = "yes" if row is best else "no"
    failed = sum(int(row["failed"]) for row in rows)
    goal = Goal("trials that ended with an error", "0", str(failed), failed == 0)
    return finish(Measurement("plain_tune", rows, [goal]), options.json)


def plain_setup(spec: SweepSpec, home: Path) -> PlainSetup:
    """Model, rows and clocks exactly as Sweeper would use them. Raises UserError for what the yardstick does not do."""
    from sweeper.data.tokens import TokenSet
    from sweeper.engine.evaluate import plan as evaluation_plan
    from sweeper.sweep.home import Home
    from sweeper.sweep.prepare import prepare

    if spec.training.method != "lora":
        raise UserError(f"training.method is {spec.training.method!r}, but the yardstick trains lora; set training.method=lora")
    metric = spec.objective.metrics[0]
    if metric not in ("accuracy", "loss"):
        raise UserError(f"objective.metric is {metric!r}, but the yardstick measures accuracy or loss; set objective.metric")
    ready = prepare(spec, Home.at(home), notice=print)
    train, validation = (TokenSet(side).info for side in (ready.bundle.train, ready.bundle.validation))
    count = evaluation_plan(ready.engine_setup(), train, validation)
    return PlainSetup(
        model=str(ready.model),
        train=str(ready.bundle.train),
        validation=str(ready.bundle.validation),
        dtype=ready.training.dtype,
        plan=ready.plan,
        rows_between=count.between,
        rows_full=count.full,
        threads=1,
    )


def run(
    setup: PlainSetup,
    way: Arrangement,
    trials: int,
    fixed: Sequence[Mapping[str, ParamValue]] | None,
    scratch: Path,
) -> dict[str, Any]:
    """One whole sweep in this arrangement; returns its row.

    `seconds` leaves out Ray's own start and end; of them, `start_seconds` went until the first worker had its model.
    """
    import ray
    import torch
    from ray import tune

    gpus = torch.cuda.device_count() / way.processes
    ray.init(
        address="local",
        num_cpus=way.processes * way.threads,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
    )
    try:
        start = time.time()
        setup = replace(setup, threads=way.threads, began=start)
        trainable = tune.with_resources(tune.with_parameters(PlainTrial, setup=setup), {"cpu": way.threads, "gpu": gpus})
        tuner = tune.Tuner(
            trainable,
            param_space={"configuration": tune.grid_search([dict(point) for point in fixed])} if fixed else None,
            tune_config=_tune_config(setup.plan, 1 if fixed else trials, way, search=fixed is None),
            run_config=tune.RunConfig(
                name=f"plain-{way}",
                storage_path=str(scratch / "ray"),
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        results = tuner.fit()
        return _row(setup.plan, way, results, time.time() - start)
    finally:
        ray.shutdown()


def _tune_config(plan: StudyPlan, trials: int, way: Arrangement, search: bool) -> Any:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    metric, mode = plan.metrics[0], "max" if plan.directions[0] == "maximize" else "min"
    if not search:
        return tune.TuneConfig(metric=metric, mode=mode, num_samples=trials, max_concurrent_trials=way.processes, reuse_actors=True)
    first = plan.rungs[0] if plan.rungs else plan.full
    return tune.TuneConfig(
        metric=metric,
        mode=mode,
        num_samples=trials,
        max_concurrent_trials=way.processes,
        reuse_actors=True,
        search_alg=_searcher(plan, metric, mode),
        scheduler=ASHAScheduler(
            time_attr="nominal", max_t=plan.full, grace_period=min(first, plan.full), reduction_factor=plan.search.reduction
        ),
    )


def _searcher(plan: StudyPlan, metric: str, mode: str) -> Any:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=plan.search.seed, n_startup_trials=plan.search.startup_trials)
    default = {key: plan.defaults[key] for key in plan.space}
    return OptunaSearch(space=Suggest(plan.space), metric=metric, mode=mode, sampler=sampler, points_to_evaluate=[default])


@dataclass(frozen=True)
class Suggest:
    """The space as Optuna's define-by-run function; a dimension with `when` comes after what it depends on.

    A class, because Tune pickles its searcher.
    """

    space: Mapping[str, Dimension]

    def __call__(self, trial: Any) -> None:
        """Draws every dimension that the values drawn so far call for."""
        drawn: dict[str, Any] = {}
        waiting = dict(self.space)
        while waiting:
            ready = {key: d for key, d in waiting.items() if not d.when or not (set(d.when) & set(waiting))}
            for key, dimension in ready.items():
                del waiting[key]
                if all(drawn.get(other) in values for other, values in (dimension.when or {}).items()):
                    drawn[key] = _draw(trial, key, dimension)


def _draw(trial: Any, key: str, dimension: Dimension) -> Any:
    if isinstance(dimension, FloatDimension):
        return trial.suggest_float(key, dimension.low, dimension.high, log=dimension.log, step=dimension.step)
    if isinstance(dimension, IntDimension):
        return trial.suggest_int(key, dimension.low, dimension.high, log=dimension.log, step=dimension.step or 1)
    return trial.suggest_categorical(key, dimension.values)


def _row(plan: StudyPlan, way: Arrangement, results: Any, seconds: float) -> dict[str, Any]:
    ended = [result for result in results if result.error is None and result.metrics]
    metric, maximize = plan.metrics[0], plan.directions[0] == "maximize"
    whole = [r for r in ended if r.metrics["nominal"] >= plan.budget({**plan.defaults, **_configuration(r)})]
    best = (max if maximize else min)(whole, key=lambda r: float(r.metrics[metric]), default=None)
    return {
        "arrangement": str(way),
        "seconds": round(seconds, 1),
        "start_seconds": round(min((float(r.metrics["start_seconds"]) for r in ended), default=seconds), 1),
        "trials": len(results),
        "stopped": len(ended) - len(whole),
        "failed": len(results) - len(ended),
        "evaluations": sum(int(r.metrics["training_iteration"]) for r in ended),
        "examples": sum(int(r.metrics["nominal"]) for r in ended),
        "train_seconds": round(sum(float(r.metrics["train_seconds"]) for r in ended), 1),
        "evaluate_seconds": round(sum(float(r.metrics["evaluate_seconds"]) for r in ended), 1),
        f"best_{metric}": float(best.metrics[metric]) if best else None,
        "best": _configuration(best) if best else None,
    }


def _configuration(result: Any) -> dict[str, Any]:
    config = dict(result.config)
    return dict(config.get("configuration", config))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plain_tune", description="The yardstick: Ray Tune and HF Trainer.")
    parser.add_argument("--spec", type=Path, required=True, help="a Sweeper spec, e.g. search_spaces/demo.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the spec")
    parser.add_argument("--trials", type=int, help="trials in all (default: the spec's)")
    parser.add_argument(
        "--configurations", type=Path, metavar="FILE", help="JSON list of configurations to train whole, in place of a search"
    )
    parser.add_argument(
        "--arrangement", action="append", type=parse_arrangement, metavar="PxT", help="processes x threads (default: both ways)"
    )
    parser.add_argument("--home", type=Path, help="sweep home whose model and token files are used (default: a temporary one)")
    parser.add_argument("--bf16", action="store_true", help="the Trainer's own switch: products in bf16, weights as the spec says")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_TRIALS} trials on a few rows")
    add_output(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
