"""The outbox tells trackers everything once, in order, whatever breaks in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from sweeper.errors import FencedError
from sweeper.sweep.outbox import Outbox
from sweeper.tracking.base import Metric, Tracker
from sweeper.tracking.memory import MemoryTracker

T0 = 1_790_000_000_000


@dataclass(frozen=True)
class Event:
    id: int
    kind: str
    trial: int | None
    payload: dict[str, Any]
    time_ms: int


@dataclass
class MemoryLedger:
    """The outbox's side of a ledger, in memory."""

    events: list[Event] = field(default_factory=list)
    cursors: dict[str, int] = field(default_factory=dict)
    runs: dict[tuple[str, int | None], str] = field(default_factory=dict)

    def add(self, kind: str, trial: int | None = None, /, **payload: Any) -> None:
        self.events.append(Event(len(self.events) + 1, kind, trial, payload, T0 + 1000 * len(self.events)))

    def pending(self, tracker: str, limit: int = 200) -> list[Event]:
        return [event for event in self.events if event.id > self.cursors.get(tracker, 0)][:limit]

    def sent(self, tracker: str, upto: int, runs: Mapping[int, str] = MappingProxyType({})) -> None:
        self.cursors[tracker] = upto
        self.runs.update({(tracker, trial): run for trial, run in runs.items()})

    def tracker_runs(self, tracker: str) -> dict[int, str]:
        return {trial: run for (other, trial), run in self.runs.items() if other == tracker and trial is not None}

    def tracker_run(self, tracker: str, trial: int | None) -> str | None:
        return self.runs.get((tracker, trial))

    def set_tracker_run(self, tracker: str, trial: int | None, run: str) -> None:
        self.runs[tracker, trial] = run


def a_sweep(ledger: MemoryLedger, trials: int = 2) -> None:
    ledger.add(
        "sweep_started",
        spec={"name": "demo", "model": {"name": "tiny"}},
        tags={"sweeper.study": "demo"},
        dataset={"name": "rows", "digest": "abc", "source": "rows.csv", "context": "training", "profile": {"train": 30}},
        versions={"torch": "2.13"},
    )
    for trial in range(trials):
        ledger.add("trial_started", trial, params={"learning_rate": 2e-4, "rank": 8}, attempt=0)
        for i in range(3):
            ledger.add(
                "report",
                trial,
                kind="rung" if i == 1 else "evaluation",
                nominal=100 * (i + 1),
                examples=100 * (i + 1) + 4,
                step=10 * (i + 1),
                time_ms=T0 + 500 + 10_000 * trial + 1000 * i,
                metrics={"validation/loss": 2.0 - i / 2, "validation/accuracy": 0.5 + i / 10},
            )
        ledger.add("decision", trial, action="continue", rung=200, reason="")
        ledger.add(
            "trial_ended",
            trial,
            state="COMPLETE",
            reason="",
            nominal=300,
            metrics={"validation/accuracy": 0.7},
            adapter=f"adapters/demo/{trial}",
        )
    ledger.add("winner", 1, trial=1, params={"rank": 8}, metrics={"validation/accuracy": 0.7}, comparison={"verdict": "no better"})
    ledger.add("sweep_ended", finished=True, reason="")


@pytest.fixture
def depot(tmp_path: Path) -> Path:
    for trial in range(2):
        folder = tmp_path / "home" / "adapters" / "demo" / str(trial)
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
    return tmp_path / "home"


def told(ledger: MemoryLedger, trackers: Sequence[Tracker], depot: Path, notices: list[str] | None = None) -> bool:
    outbox = Outbox(ledger, trackers, depot, notice=(notices if notices is not None else []).append)
    outbox.start()
    done = outbox.drain(20)
    outbox.stop()
    return done


def test_a_sweep_is_told_from_its_events(depot: Path) -> None:
    ledger, tracker, notices = MemoryLedger(), MemoryTracker(), list[str]()
    a_sweep(ledger)
    assert told(ledger, [tracker], depot, notices)
    assert notices == []
    sweep = tracker.runs[ledger.runs["memory", None]]
    trials = tracker.trials(sweep.id)
    assert sorted(trials) == [0, 1]
    assert trials[0].params == {"learning_rate": "0.0002", "rank": "8"}
    assert trials[0].metrics["validation/loss"] == [
        Metric("validation/loss", 2.0 - i / 2, 100 * (i + 1), T0 + 500 + 1000 * i) for i in range(3)
    ]
    assert [m.value for m in trials[0].metrics["cost/examples"]] == [104, 204, 304]
    assert [(m.value, m.step) for m in trials[0].metrics["final/accuracy"]] == [(0.7, 300)]
    assert trials[0].tags["sweeper.rung"] == "200"
    assert trials[0].artifacts == ["adapter/adapter_config.json"]
    assert (trials[1].tags["sweeper.winner"], sweep.tags["sweeper.winner"]) == ("true", "1")
    assert sweep.tags["winner.verdict"] == "no better"
    assert sweep.datasets[0]["digest"] == "abc"
    assert (sweep.status, trials[0].status) == ("finished", "finished")


def test_telling_everything_again_changes_nothing(depot: Path) -> None:
    ledger, tracker = MemoryLedger(), MemoryTracker()
    a_sweep(ledger)
    assert told(ledger, [tracker], depot)
    before = json.dumps({name: vars(run) for name, run in tracker.runs.items()}, default=str)
    ledger.cursors.clear()
    ledger.runs.clear()  # as if the process had died before any run was noted
    assert told(ledger, [tracker], depot)
    assert json.dumps({name: vars(run) for name, run in tracker.runs.items()}, default=str) == before


def test_events_are_told_while_the_sweep_goes_on(depot: Path) -> None:
    ledger, tracker = MemoryLedger(), MemoryTracker()
    outbox = Outbox(ledger, [tracker], depot)
    outbox.start()
    assert outbox.url() is None
    a_sweep(ledger, trials=1)
    assert outbox.drain(5)
    assert outbox.url() == "memory:run-0"
    ledger.add("trial_started", 1, params={}, attempt=0)
    outbox.poke()
    assert wait(lambda: len(tracker.runs) == 3)
    assert tracker.runs["run-0"].status == "running"
    outbox.stop()


def test_progress_is_told_thinly_and_evaluations_always(depot: Path) -> None:
    ledger, tracker = MemoryLedger(), MemoryTracker()
    ledger.add("sweep_started", spec={}, tags={"sweeper.study": "demo"})
    ledger.add("trial_started", 0, params={})
    for second in range(0, 60, 2):
        values = {"train/loss": 1.0}
        ledger.add("report", 0, kind="progress", nominal=second, examples=second, time_ms=T0 + 1000 * second, metrics=values)
        ledger.add("report", 0, kind="evaluation", nominal=second, time_ms=T0 + 1000 * second, metrics={"validation/loss": 1.0})
    assert told(ledger, [tracker], depot)
    metrics = tracker.trials("run-0")[0].metrics
    assert len(metrics["train/loss"]) == 6
    assert len(metrics["validation/loss"]) == 30


class Moody(MemoryTracker):
    """Fails while `down`, as a server that is away."""

    kind = key = "moody"
    down = True

    def start_trial(self, *args: Any, **kwargs: Any) -> str:
        if self.down:
            raise ConnectionError("postgresql://me:s3cret@db is away")
        return super().start_trial(*args, **kwargs)


def test_a_tracker_that_is_away_is_told_later_and_does_not_hold_up_the_other(depot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeper.sweep.outbox.FIRST_PAUSE", 0.05)
    ledger, moody, other, notices = MemoryLedger(), Moody(), MemoryTracker(), list[str]()
    a_sweep(ledger)
    outbox = Outbox(ledger, [moody, other], depot, notice=notices.append)
    outbox.start()
    assert wait(lambda: other.runs != {} and other.runs["run-0"].status == "finished")
    assert not outbox.drain(0.3)
    assert moody.trials("run-0") == {}
    assert len(notices) == 1
    assert "moody cannot be told now" in notices[0]
    assert "s3cret" not in notices[0]
    moody.down = False
    assert outbox.drain(20)
    outbox.stop()
    assert sorted(moody.trials("run-0")) == [0, 1]
    assert notices[1:] == ["moody answers again and has been told everything"]


def test_what_a_tracker_will_never_take_is_passed_over(depot: Path) -> None:
    ledger, tracker, notices = MemoryLedger(), MemoryTracker(), list[str]()
    ledger.add("sweep_started", spec={}, tags={"sweeper.study": "demo"})
    ledger.add("report", 7, kind="evaluation", nominal=1, metrics={"a": 1.0})  # trial 7 was never started
    ledger.add("trial_ended", 7, state="NO SUCH STATE")
    ledger.add("a_kind_of_a_later_version", 7)
    ledger.add("trial_started", 0, params={})
    assert told(ledger, [tracker], depot, notices)
    assert list(tracker.trials("run-0")) == [0]
    assert [("event 2" in notices[0]), ("event 3" in notices[1])] == [True, True]
    assert ledger.cursors["memory"] == 5


def test_a_store_that_was_deleted_is_told_everything_again(depot: Path) -> None:
    ledger, notices = MemoryLedger(), list[str]()
    a_sweep(ledger)
    assert told(ledger, [MemoryTracker()], depot)
    fresh = MemoryTracker()
    assert told(ledger, [fresh], depot, notices)
    assert sorted(fresh.trials(ledger.runs["memory", None])) == [0, 1]
    assert "told everything again" in notices[0]


def test_an_adapter_outside_the_depot_is_left_alone(depot: Path) -> None:
    (depot.parent / "secret").mkdir()
    (depot.parent / "secret" / "key").write_text("s3cret")
    ledger, tracker = MemoryLedger(), MemoryTracker()
    ledger.add("sweep_started", spec={}, tags={"sweeper.study": "demo"})
    ledger.add("trial_started", 0, params={})
    ledger.add("trial_ended", 0, state="COMPLETE", adapter="../secret")
    assert told(ledger, [tracker], depot)
    assert tracker.trials("run-0")[0].artifacts == []


def test_a_fenced_driver_tells_nothing_more(depot: Path) -> None:
    class Fenced(MemoryLedger):
        def pending(self, tracker: str, limit: int = 200) -> list[Event]:
            raise FencedError("another driver has taken over")

    ledger, tracker = Fenced(), MemoryTracker()
    started = time.monotonic()
    assert not told(ledger, [tracker], depot)
    assert time.monotonic() - started < 5
    assert tracker.runs == {}


def test_no_trackers_are_drained_at_once(depot: Path) -> None:
    assert told(MemoryLedger(), [], depot)


_DRIVER = """
import json, sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_sweep_outbox import MemoryLedger, a_sweep
from sweeper.sweep.outbox import Outbox
from sweeper.tracking.mlflow import MlflowTracker

ledger, home = MemoryLedger(), Path(sys.argv[1])
a_sweep(ledger)

class Dies(MlflowTracker):
    left = int(sys.argv[2])
    def log(self, run, metrics):
        super().log(run, metrics)
        self.left -= 1
        if self.left == 0:  # killed here, before the cursor moves or any run is noted on disk
            print("now", flush=True)
            threading.Event().wait()

tracker = Dies(f"sqlite:///{home / 'mlflow.db'}", "demo", home / "artifacts")
outbox = Outbox(ledger, [tracker], home)
outbox.start()
assert outbox.drain(60)
outbox.stop()
print("done", flush=True)
"""


def test_kill_9_in_the_middle_doubles_nothing_in_mlflow(depot: Path) -> None:
    for left, last_word in ((6, "now"), (-1, "done")):
        driver = subprocess.Popen(
            [sys.executable, "-c", _DRIVER, str(depot), str(left), str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True
        )
        assert driver.stdout is not None
        assert driver.stdout.readline().strip() == last_word
        os.kill(driver.pid, signal.SIGKILL if last_word == "now" else signal.SIGCONT)
        driver.communicate(timeout=20)

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{depot / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(parents) == 1
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    assert sorted(run.info.run_name for run in children) == ["trial 0", "trial 1"]
    for run in children:
        history = client.get_metric_history(run.info.run_id, "validation/loss")
        assert [(m.step, m.value) for m in history] == [(100, 2.0), (200, 1.5), (300, 1.0)]
        assert run.info.status == "FINISHED"


def wait(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        threading.Event().wait(0.02)
    return true()
