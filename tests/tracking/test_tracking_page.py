"""What a person sees: MLflow's own page, opened by a real browser, shows the sweep with its trials below it."""

from __future__ import annotations

from pathlib import Path

from scripts.pictures import mlflow_tree
from sweeper.records import TrialState
from sweeper.tracking.base import Metric
from sweeper.tracking.mlflow import MlflowTracker


def test_mlflow_s_page_shows_the_sweep_and_its_trials_below_it(mlflow_server: str, tmp_path: Path) -> None:
    tracker = MlflowTracker(mlflow_server, "page")
    sweep = tracker.start_sweep("my-sweep", {}, {"sweeper.sweep": "my-sweep-1"}, None, 1_790_000_000_000)
    for number in range(3):
        at = 1_790_000_001_000 + 1000 * number
        run = tracker.start_trial(sweep, number, {"learning_rate": 2e-4}, {}, None, at)
        tracker.log(run, [Metric("final/accuracy", 0.5 + number / 10, 100, at)])
        tracker.end_trial(run, TrialState.PRUNED if number == 1 else TrialState.COMPLETE, "", at + 500)
    tracker.end_sweep(sweep, True)

    picture = tmp_path / "mlflow.png"
    names = mlflow_tree(mlflow_server, "page", picture, children=3, columns=["final/accuracy", "sweeper.state"])
    assert names == ["my-sweep", "trial 2", "trial 1", "trial 0"]
    assert picture.read_bytes().startswith(b"\x89PNG")
