"""What every executor must do, whatever it runs on. A test module subclasses `ExecutorContract` and gives `make`.

The engine is `Replay`, which replays curves, so that these tests are about the executor alone.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import pytest

from sweeper.engine.base import EngineSetup
from sweeper.engine.depot import FolderDepot
from sweeper.errors import TrialError
from sweeper.executors.base import EngineFactory
from sweeper.executors.replay import Replay
from sweeper.records import (
    Action,
    Decision,
    Done,
    Ending,
    Executor,
    Outcome,
    Report,
    ReportKind,
    TrialSpec,
    Wait,
)
from sweeper.spec.models import EvaluateSpec, TrainingSpec

STUDY = "contract"
FULL = 40
Answer = Callable[["Recorder", Report], Action]


def setup(folder: Path, slots: int = 1, study: str = STUDY) -> EngineSetup:
    """A setup whose rows and model are files of a few bytes: the replaying engine does not read them."""
    for side in ("train", "validation", "model"):
        (folder / side).mkdir(parents=True, exist_ok=True)
        (folder / side / "info.json").write_text(f'{{"side": "{side}"}}')
    return EngineSetup(
        study=study,
        model=str(folder / "model"),
        revision=None,
        trust_remote_code=False,
        train=folder / "train",
        validation=folder / "validation",
        training=TrainingSpec(),
        evaluate=EvaluateSpec(),
        metrics=("loss",),
        objective="loss",
        maximize=False,
        at="last",
        checkpoint_seconds=300.0,
        full_examples=FULL,
        slots=slots,
    )


def trial(number: int, rungs: Iterable[int] = (10,), **params: float | str) -> TrialSpec:
    """A trial of four evaluations, with a rung at the first."""
    return TrialSpec(
        study=STUDY,
        number=number,
        params={"curve": "even", **params},
        seed=number,
        examples=FULL,
        evaluations=(10, 20, 30, 40),
        rungs=tuple(rungs),
    )


@dataclass(frozen=True)
class Curves:
    """The curve named by the parameter `curve`."""

    log: str | None = None  # a file that gets the process id of each evaluation

    def __call__(self, spec: TrialSpec, index: int) -> float:
        if self.log is not None:
            with open(self.log, "a") as file:
                file.write(f"{spec.number} {index} {os.getpid()}\n")
        kind = spec.params["curve"]
        if kind == "broken" and index == 2:
            raise TrialError("the loss exploded")
        if kind == "nan":
            return float("nan")
        return spec.number + 1.0 / (index + 1)


class Recorder:
    """A TrialSource that hands out given trials and remembers everything it is told, and by which thread."""

    def __init__(self, trials: Iterable[TrialSpec], answer: Answer | None = None) -> None:
        self.queue: deque[TrialSpec | Wait] = deque(trials)
        self.answer = answer or (lambda _, __: Action.CONTINUE)
        self.reports: list[Report] = []
        self.ends: list[tuple[int, Outcome]] = []
        self.calls: list[tuple[float, str, int | None]] = []
        self.given: dict[int, TrialSpec] = {}
        self.threads: set[int] = set()
        self.verdicts: deque[Decision] = deque()
        self.running: set[int] = set()
        self.most_running = 0
        self.gathering = False
        self.lock = threading.Lock()  # as a source over a database, this one cannot be pickled

    @contextmanager
    def together(self) -> Iterator[None]:
        assert not self.gathering
        self.gathering = True
        yield
        self.gathering = False
        self._called("kept")

    def next_trial(self) -> TrialSpec | Wait | Done:
        self._called("next_trial")
        if not self.queue:
            return Wait() if self.running else Done("all given")
        first = self.queue.popleft()
        if isinstance(first, TrialSpec):
            assert first.number not in self.running, f"trial {first.number} would run twice at once"
            self.running.add(first.number)
            self.most_running = max(self.most_running, len(self.running))
            self.given[first.number] = first
        return first

    def on_report(self, report: Report) -> Decision:
        self._called("on_report", report.trial)
        assert report.trial in self.running, f"a report of trial {report.trial}, which is not running"
        self.reports.append(report)
        return Decision(report.trial, self.answer(self, report), reason="as the test wants")

    def decisions(self) -> list[Decision]:
        self._called("decisions")
        answers = list(self.verdicts)
        self.verdicts.clear()
        return answers

    def on_end(self, trial: int, outcome: Outcome) -> None:
        self._called("on_end", trial)
        self.ends.append((trial, outcome))
        self.running.discard(trial)
        if outcome.ending is Ending.PAUSED:
            self.queue.append(replace(self.given[trial], resume_from=outcome.checkpoint, attempt=self.given[trial].attempt + 1))

    def endings(self) -> dict[int, Ending]:
        """The last ending of each trial."""
        return {number: outcome.ending for number, outcome in self.ends}

    def nominals(self, number: int) -> list[int]:
        """The evaluation clock of a trial's reports that carry metrics, in the order they came."""
        return [r.nominal for r in self.reports if r.trial == number and r.kind is not ReportKind.PROGRESS]

    def _called(self, what: str, number: int | None = None) -> None:
        self.threads.add(threading.get_ident())
        self.calls.append((time.monotonic(), what, number))


class GivesBack(Recorder):
    """Queues a preempted trial again, from its last checkpoint, as a study does."""

    def on_end(self, trial: int, outcome: Outcome) -> None:
        super().on_end(trial, outcome)
        if outcome.ending is Ending.PREEMPTED:
            known = [r.checkpoint for r in self.reports if r.trial == trial and r.checkpoint]
            again = replace(self.given[trial], attempt=self.given[trial].attempt + 1)
            self.queue.append(replace(again, resume_from=outcome.checkpoint or (known[-1] if known else None)))


class Make(Protocol):
    """Builds the executor under test, with room for two trials at once."""

    def __call__(self, factory: EngineFactory) -> Executor: ...


def at_rung(number: int, action: Action) -> Answer:
    """Answers the first report at a rung of one trial with `action`, everything else with CONTINUE."""

    def answer(source: Recorder, report: Report) -> Action:
        first = source.given[number].resume_from is None if number in source.given else True
        return action if report.trial == number and report.kind is ReportKind.RUNG and first else Action.CONTINUE

    return answer


class ExecutorContract:
    """The suite. `depot_root` is where `make`'s executor puts files."""

    @pytest.fixture
    def depot_root(self, tmp_path: Path) -> Path:
        return tmp_path / "home"

    @pytest.fixture
    def make(self) -> Make:
        raise NotImplementedError

    def run(self, make: Make, source: Recorder, seconds: float = 0.0, curves: Curves | None = None) -> Recorder:
        make(Replay(curves or Curves(), seconds)).run(source)
        assert source.threads <= {threading.get_ident()}, "a call came from another thread than the one that runs the executor"
        return source

    def test_every_trial_ends_once_with_its_reports_in_order(self, make: Make, depot_root: Path) -> None:
        source = self.run(make, Recorder([trial(0), trial(1), trial(2, rungs=())]))
        assert sorted(number for number, _ in source.ends) == [0, 1, 2]
        assert set(source.endings().values()) == {Ending.COMPLETED}
        for number, outcome in source.ends:
            assert source.nominals(number) == [10, 20, 30, 40]
            assert outcome.metrics == {"validation/loss": number + 0.25}
            assert outcome.adapter is not None
            assert FolderDepot(depot_root).get(outcome.adapter).keys() == {"replay.json"}
        assert [r.kind for r in source.reports if r.trial == 0 and r.nominal == 10] == [ReportKind.RUNG]

    def test_a_stopped_trial_ends_pruned_at_its_rung(self, make: Make) -> None:
        source = self.run(make, Recorder([trial(0), trial(1)], at_rung(1, Action.STOP)))
        assert source.endings() == {0: Ending.COMPLETED, 1: Ending.PRUNED}
        assert source.nominals(1) == [10]
        assert dict(source.ends)[1].metrics == {"validation/loss": 2.0}

    def test_a_trial_can_be_stopped_between_rungs(self, make: Make) -> None:
        def answer(_: Recorder, report: Report) -> Action:
            return Action.STOP if report.nominal == 20 and report.kind is ReportKind.EVALUATION else Action.CONTINUE

        source = self.run(make, Recorder([trial(0)], answer), seconds=0.3)
        assert source.endings() == {0: Ending.PRUNED}
        assert 40 not in source.nominals(0)

    def test_a_paused_trial_comes_back_from_its_checkpoint(self, make: Make, depot_root: Path) -> None:
        source = self.run(make, Recorder([trial(0), trial(1)], at_rung(0, Action.PAUSE)))
        paused, completed = [outcome for number, outcome in source.ends if number == 0]
        assert (paused.ending, completed.ending) == (Ending.PAUSED, Ending.COMPLETED)
        assert paused.checkpoint is not None
        assert "replay.json" in FolderDepot(depot_root).get(paused.checkpoint)
        assert source.nominals(0) == [10, 20, 30, 40]
        assert source.endings()[1] is Ending.COMPLETED

    def test_a_trial_after_wait_is_trained(self, make: Make) -> None:
        source = Recorder([])
        source.queue.extend([Wait(), Wait(), trial(0)])
        self.run(make, source)
        assert source.endings() == {0: Ending.COMPLETED}

    def test_later_holds_one_trial_while_its_neighbour_goes_on(self, make: Make) -> None:
        held: dict[str, float] = {}

        def answer(source: Recorder, report: Report) -> Action:
            if report.trial == 0 and report.kind is ReportKind.RUNG:
                held["since"] = time.monotonic()
                return Action.LATER
            if "since" in held and time.monotonic() - held["since"] > 10 and "until" not in held:
                held["until"] = time.monotonic()
                source.verdicts.append(Decision(0, Action.CONTINUE))
            return Action.CONTINUE

        neighbour = replace(trial(1, rungs=()), evaluations=tuple(range(1, 31)))
        source = self.run(make, Recorder([trial(0), neighbour], answer), seconds=0.4)
        assert source.endings() == {0: Ending.COMPLETED, 1: Ending.COMPLETED}
        assert source.most_running == 2
        meanwhile = [n for t, what, n in source.calls if what == "on_report" and held["since"] < t < held["until"]]
        assert meanwhile.count(1) >= 10
        assert 0 not in meanwhile
        assert source.nominals(0) == [10, 20, 30, 40]

    def test_a_trial_held_at_later_can_be_pruned_without_a_neighbour(self, make: Make) -> None:
        def answer(source: Recorder, report: Report) -> Action:
            source.verdicts.append(Decision(report.trial, Action.STOP, "the database is back"))
            return Action.LATER

        source = self.run(make, Recorder([trial(0)], answer))
        assert source.endings() == {0: Ending.PRUNED}
        assert dict(source.ends)[0].reason == "the database is back"

    def test_a_failing_trial_fails_alone_with_its_reason(self, make: Make) -> None:
        lost = replace(trial(3), resume_from="checkpoints/nowhere")
        source = self.run(make, Recorder([trial(0, curve="broken"), trial(1), trial(2, curve="nan"), lost]))
        assert source.endings() == {0: Ending.FAILED, 1: Ending.COMPLETED, 2: Ending.FAILED, 3: Ending.FAILED}
        reasons = {number: outcome.reason for number, outcome in source.ends}
        assert reasons[0] == "the loss exploded"
        assert "NaN" in reasons[2]
        assert "checkpoints/nowhere" in reasons[3]
        assert source.nominals(0) == [10, 20]

    def test_progress_comes_and_decisions_are_asked_for_every_two_seconds(self, make: Make) -> None:
        source = self.run(make, Recorder([replace(trial(0, rungs=()), evaluations=(10, 40))]), seconds=2.5)
        heard = [t for t, what, _ in source.calls if what == "on_report"]
        assert max(b - a for a, b in itertools.pairwise(heard)) < 2.6
        assert ReportKind.PROGRESS in {r.kind for r in source.reports}
        asked = [t for t, what, _ in source.calls if what == "decisions"]
        assert max(b - a for a, b in itertools.pairwise(asked)) < 2.6

    def test_ctrl_c_preempts_every_trial_with_a_checkpoint(self, make: Make, depot_root: Path) -> None:
        pressed: list[Report] = []

        def answer(source: Recorder, report: Report) -> Action:
            if {r.trial for r in source.reports} == {0, 1} and report.kind is ReportKind.EVALUATION and not pressed:
                pressed.append(report)
                signal.raise_signal(signal.SIGINT)
            return Action.CONTINUE

        endless = [replace(trial(n), evaluations=tuple(range(10, 1000, 10)), examples=990) for n in (0, 1, 2)]
        source = Recorder(endless, answer)
        with pytest.raises(KeyboardInterrupt):
            self.run(make, source, seconds=0.2)
        assert source.running == set()
        assert source.endings() == dict.fromkeys(source.given, Ending.PREEMPTED)
        assert {0, 1} <= source.given.keys()
        for number in (0, 1):
            checkpoint = dict(source.ends)[number].checkpoint
            assert checkpoint is not None
            assert "replay.json" in FolderDepot(depot_root).get(checkpoint)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_an_error_of_the_source_comes_out_as_it_is_and_nothing_more_is_told(self, make: Make) -> None:
        def answer(source: Recorder, report: Report) -> Action:
            raise LookupError("the study is gone")

        source = Recorder([trial(0), trial(1)], answer)
        with pytest.raises(LookupError, match="the study is gone"):
            self.run(make, source)
        assert source.ends == []
        assert [what for _, what, _ in source.calls].count("on_report") == 1

    def test_what_the_source_could_not_keep_is_not_acted_on(self, make: Make, tmp_path: Path) -> None:
        class Forgetful(Recorder):
            @contextmanager
            def together(self) -> Iterator[None]:
                yield
                if any(report.kind is ReportKind.RUNG for report in self.reports):
                    raise LookupError("the study is gone")

        source, log = Forgetful([trial(0)], at_rung(0, Action.CONTINUE)), tmp_path / "log"
        with pytest.raises(LookupError, match="the study is gone"):
            self.run(make, source, curves=Curves(str(log)))
        assert source.ends == []
        assert len(log.read_text().splitlines()) == 1, "the trial went on from its rung"

    def test_nothing_to_do_is_done_at_once(self, make: Make) -> None:
        source = self.run(make, Recorder([]))
        assert source.reports == []
        assert source.ends == []


def pids(log: Path) -> Mapping[int, list[int]]:
    """From a log of `Curves`: trial -> process ids of its evaluations."""
    found: dict[int, list[int]] = {}
    for line in log.read_text().splitlines():
        number, _, pid = (int(part) for part in line.split())
        found.setdefault(number, []).append(pid)
    return found
