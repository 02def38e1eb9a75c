"""What every tracker must do. A new tracker needs a lab (how it is opened and read back), not a new test file.

Stores are read back with their own readers, never through the tracker. What a store cannot say is None in its view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest

from sweeper.records import TrialState
from sweeper.tracking.base import BY_PERSON, TAG_SWEEP, Metric, Tracker

T0 = 1_790_000_000_000
SPEC: dict[str, object] = {"schema": 1, "name": "demo", "model": {"name": "tiny"}, "storage": "postgresql://me:s3cret@db/optuna"}


@dataclass
class RunView:
    """A run as its store shows it. `metrics` maps a name to (step, value) in order; `times` to Unix ms, None if not kept."""

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    times: dict[str, list[int]] | None = None
    status: str | None = None
    artifacts: set[str] | None = None


@dataclass
class View:
    """A sweep as its store shows it; `raw` is all its text, to look for secrets."""

    sweeps: list[RunView]
    trials: dict[int, list[RunView]]  # a number that stands twice was doubled
    raw: str = ""

    def trial(self, number: int) -> RunView:
        assert len(self.trials[number]) == 1, f"trial {number} was doubled"
        return self.trials[number][0]

    @property
    def sweep(self) -> RunView:
        assert len(self.sweeps) == 1, "the sweep was doubled"
        return self.sweeps[0]


class Lab(Protocol):
    """A store of a tracker's own."""

    def open(self) -> Tracker: ...

    def read(self) -> View: ...


def metrics(*values: float, name: str = "validation/loss", start: int = 0) -> list[Metric]:
    return [Metric(name, value, 100 * (start + i), T0 + 1000 * (start + i)) for i, value in enumerate(values)]


def begin(tracker: Tracker) -> str:
    return tracker.start_sweep("demo", SPEC, {TAG_SWEEP: "demo-1", "sweeper.task": "classify"}, None, T0)


class TrackerContract:
    """Subclasses give a `lab` fixture."""

    @pytest.fixture
    def lab(self, tmp_path: Path) -> Lab:
        raise NotImplementedError

    def test_a_sweep_is_remembered_with_its_trials(self, lab: Lab, tmp_path: Path) -> None:
        adapter = tmp_path / "made" / "adapter"
        adapter.mkdir(parents=True)
        (adapter / "adapter_model.safetensors").write_bytes(b"weights")
        tracker = lab.open()
        sweep = begin(tracker)
        tracker.log_dataset(sweep, "rows", "0123456789abcdef", "/data/rows.csv", "training", {"rows": 30})
        for number in (0, 1):
            params = {"learning_rate": 2e-4 * (number + 1), "batch_size": 8, "schedule": "cosine"}
            run = tracker.start_trial(sweep, number, params, {"sweeper.attempt": "0"}, None, T0)
            tracker.log(run, metrics(2.0, 1.5, 1.25))
            tracker.log(run, metrics(0.5, name="validation/accuracy", start=2))
            tracker.set_tags(run, {"sweeper.rung": "100"})
            tracker.log_artifact(run, adapter, "adapter")
            tracker.end_trial(run, (TrialState.COMPLETE, TrialState.PRUNED)[number], ("", "0.5 is below 0.7")[number], T0 + 9000)
        tracker.end_sweep(sweep, True, "", T0 + 10000)
        assert isinstance(tracker.url(sweep), str)
        tracker.close()

        view = lab.read()
        assert sorted(view.trials) == [0, 1]
        one = view.trial(1)
        assert float(one.params["learning_rate"]) == 4e-4
        assert one.params["schedule"] == "cosine"
        assert one.metrics["validation/loss"] == [(0, 2.0), (100, 1.5), (200, 1.25)]
        assert one.metrics["validation/accuracy"] == [(200, 0.5)]
        if one.times is not None:
            assert one.times["validation/loss"] == [T0, T0 + 1000, T0 + 2000]
        assert one.tags["sweeper.state"] == "PRUNED"
        assert one.tags["sweeper.reason"] == "0.5 is below 0.7"
        assert one.tags["sweeper.rung"] == "100"
        assert view.trial(0).tags["sweeper.state"] == "COMPLETE"
        assert view.sweep.tags["sweeper.state"] == "finished"
        if one.artifacts is not None:
            assert any(name.endswith("adapter_model.safetensors") for name in one.artifacts)
        assert {one.status, view.trial(0).status, view.sweep.status} <= {"finished", None}

    def test_every_call_may_come_twice_also_from_a_new_process(self, lab: Lab) -> None:
        runs = []
        for _ in range(2):
            tracker = lab.open()
            for _ in range(2):
                sweep = begin(tracker)
                run = tracker.start_trial(sweep, 3, {"rank": 8}, {}, None, T0)
                tracker.log(run, metrics(2.0, 1.0))
                tracker.log_dataset(sweep, "rows", "abc", "rows.csv", "training", {"rows": 30})
                tracker.end_trial(run, TrialState.COMPLETE, "", T0 + 5000)
                runs.append((sweep, run))
            tracker.end_sweep(sweep, True)
            tracker.close()
        view = lab.read()
        assert len(set(runs)) == 1
        assert list(view.trials) == [3]
        assert view.trial(3).metrics["validation/loss"] == [(0, 2.0), (100, 1.0)]
        assert view.sweep.tags["sweeper.state"] == "finished"

    def test_a_paused_trial_goes_on_in_its_own_run(self, lab: Lab) -> None:
        tracker = lab.open()
        sweep = begin(tracker)
        run = tracker.start_trial(sweep, 0, {"rank": 8}, {}, None, T0)
        tracker.log(run, metrics(2.0))
        tracker.end_trial(run, TrialState.PAUSED, "paused at a rung")
        tracker.end_sweep(sweep, False, "interrupted")
        tracker.close()
        paused = lab.read()
        assert paused.trial(0).tags["sweeper.state"] == "PAUSED"
        assert {paused.trial(0).status, paused.sweep.status} <= {"running", None}

        tracker = lab.open()
        assert tracker.knows(sweep)
        assert tracker.start_sweep("demo", SPEC, {}, sweep) == sweep
        assert tracker.start_trial(sweep, 0, {"rank": 8}, {"sweeper.attempt": "1"}, run) == run
        tracker.log(run, metrics(1.0, start=1))
        tracker.end_trial(run, TrialState.COMPLETE)
        tracker.end_sweep(sweep, True)
        tracker.close()
        view = lab.read()
        assert view.trial(0).metrics["validation/loss"] == [(0, 2.0), (100, 1.0)]
        assert view.trial(0).tags["sweeper.state"] == "COMPLETE"
        assert view.trial(0).tags["sweeper.attempt"] == "1"

    def test_statuses_say_how_a_trial_ended(self, lab: Lab) -> None:
        ends = {
            0: (TrialState.COMPLETE, "", "finished"),
            1: (TrialState.FAIL, "loss is NaN at step 7", "failed"),
            2: (TrialState.PRUNED, f"{BY_PERSON} at the page", "killed"),
            3: (TrialState.PAUSED, "", "killed"),
        }
        tracker = lab.open()
        sweep = begin(tracker)
        for number, (state, reason, _) in ends.items():
            tracker.end_trial(tracker.start_trial(sweep, number, {}, {}), state, reason)
        tracker.end_sweep(sweep, True)
        tracker.close()
        view = lab.read()
        for number, (state, reason, status) in ends.items():
            assert view.trial(number).tags["sweeper.state"] == state.value
            assert view.trial(number).tags["sweeper.reason"] == reason
            assert view.trial(number).status in (status, None)

    def test_the_winner_is_marked_and_moves(self, lab: Lab) -> None:
        tracker = lab.open()
        sweep = begin(tracker)
        runs = [tracker.start_trial(sweep, number, {"rank": 4 + number}, {}) for number in range(2)]
        for run in runs:
            tracker.end_trial(run, TrialState.COMPLETE)
        tracker.mark_winner(sweep, runs[0], 0, {"rank": 4}, metrics(0.5, name="winner/accuracy"))
        tracker.mark_winner(sweep, runs[1], 1, {"rank": 5}, metrics(0.75, name="winner/accuracy", start=1))
        tracker.end_sweep(sweep, True)
        tracker.close()
        view = lab.read()
        assert view.trial(0).tags["sweeper.winner"] == "false"
        assert view.trial(1).tags["sweeper.winner"] == "true"
        assert view.sweep.tags["sweeper.winner"] == "1"
        assert view.sweep.tags["winner.rank"] == "5"
        assert view.sweep.metrics["winner/accuracy"][-1][1] == 0.75

    def test_odd_values_and_names_are_taken(self, lab: Lab) -> None:
        tracker = lab.open()
        sweep = begin(tracker)
        run = tracker.start_trial(sweep, 0, {"targets": "q" * 9000, "nothing": None, "flag": True}, {"sweeper.reason": "r" * 9000})
        tracker.log(
            run, [Metric("loss", math.nan, 1, T0), Metric("grad", math.inf, 1, T0), Metric("my.module:f1 (macro)", 0.5, 1, T0)]
        )
        tracker.log(run, [])
        tracker.log_table(run, "rows", {"row": ["a", "b"], "loss": [1.0, math.nan]})
        tracker.end_trial(run, TrialState.FAIL, "loss is NaN")
        tracker.end_sweep(sweep, True)
        tracker.close()
        seen = lab.read().trial(0)
        assert math.isnan(seen.metrics["loss"][0][1])
        assert seen.metrics["grad"][0][1] > 1e300
        assert any(name.startswith("my.module:f1") and points == [(1, 0.5)] for name, points in seen.metrics.items())

    def test_no_password_is_written(self, lab: Lab) -> None:
        tracker = lab.open()
        sweep = begin(tracker)
        tracker.log_dataset(sweep, "rows", "abc", "https://me:s3cret@host/rows.csv?token=s3cret", "training", {})
        run = tracker.start_trial(sweep, 0, {}, {"sweeper.worker": "ray://me:s3cret@head:10001"})
        tracker.set_tags(run, {"sweeper.note": "s3://a:s3cret@bucket"})
        tracker.end_trial(run, TrialState.FAIL, "postgresql://me:s3cret@db/optuna does not answer")
        tracker.end_sweep(sweep, False, "mysql://me:s3cret@db/x went away")
        tracker.close()
        view = lab.read()
        assert "me:***@db/optuna" in view.trial(0).tags["sweeper.reason"]
        assert "s3cret" not in view.raw
