"""Ray Tune's control with no model: OptunaSearch over a database, a class Trainable that reports five times, reused actors.

As a user would have it: TPE, Optuna's own RDB storage, one trial a core, Tune's loggers off. The clock runs from the first trial's
start to the last one's end, so that neither Ray's start nor the first worker's is in it.
Does not know Sweeper. Cost: about 0.25 s a trial.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

from ray import tune

from benchmarks.control_ours import REPORTS, SPACE, Controlled, loss_at


class Replayed(tune.Trainable):  # type: ignore[misc]
    """Five reports, then done."""

    def setup(self, config: dict[str, Any]) -> None:
        """Nothing is loaded."""
        self._rate = float(config["learning_rate"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial in the same worker."""
        self._rate = float(new_config["learning_rate"])
        return True

    def step(self) -> dict[str, Any]:
        """A report."""
        done = self.iteration + 1 == REPORTS
        return {"loss": loss_at(self._rate, self.iteration), "done": done}


class Clock(tune.Callback):  # type: ignore[misc]
    """Notes when the first trial began and the last one ended."""

    def __init__(self) -> None:
        self.began = 0.0
        self.ended = 0.0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Called by Tune."""
        self.began = self.began or time.perf_counter()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Called by Tune."""
        self.ended = time.perf_counter()


def suggest(trial: Any) -> None:
    """The same space as ours, define-by-run."""
    rate, batch = SPACE["learning_rate"], SPACE["batch_size"]
    trial.suggest_float("learning_rate", rate["low"], rate["high"], log=True)
    trial.suggest_int("batch_size", batch["low"], batch["high"], log=True)
    for name in ("weight_decay", "dropout"):
        trial.suggest_float(name, SPACE[name]["low"], SPACE[name]["high"])


def _write_ahead(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


def run_ray(url: str, folder: Path, name: str, trials: int, workers: int, *, wal: bool = False) -> Controlled:
    """A whole Tune run of `trials` trials whose study lies in the database `url`; `wal`: SQLite with Sweeper's settings."""
    import optuna
    import ray
    import sqlalchemy as sa
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    clock = Clock()
    storage = optuna.storages.RDBStorage(url)
    if wal:
        sa.event.listen(storage.engine, "connect", _write_ahead)
        storage.engine.dispose()
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR", "_node_ip_address": "127.0.0.1"}
    ray.init(address="local", num_cpus=workers, **quiet)
    try:
        searcher = OptunaSearch(
            space=suggest,
            metric="loss",
            mode="min",
            sampler=optuna.samplers.TPESampler(seed=0),
            study_name=name,
            storage=storage,
        )
        tuner = tune.Tuner(
            tune.with_resources(Replayed, {"cpu": 1}),
            tune_config=tune.TuneConfig(
                metric="loss",
                mode="min",
                num_samples=trials,
                max_concurrent_trials=workers,
                reuse_actors=True,
                search_alg=searcher,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(folder / "ray"),
                verbose=0,
                callbacks=[clock],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        results = tuner.fit()
    finally:
        ray.shutdown()
    whole = [result for result in results if result.error is None and result.metrics]
    reports = sum(int(result.metrics["training_iteration"]) for result in whole)
    return Controlled(clock.ended - clock.began, len(whole), reports)
