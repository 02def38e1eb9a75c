"""The source of a sweep's trials: what follows from what it is told waits until the study has kept it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from sweeper.errors import ResourceError
from sweeper.records import Decision, Outcome, Report, TrialSpec, TrialState
from sweeper.study.gateway import Gateway
from sweeper.study.read import StudyReader
from sweeper.sweep.listen import Silent
from sweeper.sweep.source import SweepSource
from tests.study.study_helpers import completed, make_plan, report


class Seen(Silent):
    """A listener, and a depot, that write down what they hear, and which trials the database had finished then."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.heard: list[tuple[str, int]] = []

    def bring(self, name: str) -> None:
        self.heard.append((f"bring {name}", self._finished()))

    def forget(self, name: str) -> None:
        self.heard.append((f"forget {name}", self._finished()))

    def started(self, trial: TrialSpec) -> None:
        self.heard.append((f"started {trial.number}", self._finished()))

    def reported(self, report: Report, decision: Decision) -> None:
        self.heard.append((f"reported {report.trial}", self._finished()))

    def ended(self, trial: int, outcome: Outcome, state: TrialState) -> None:
        self.heard.append((f"ended {trial}", self._finished()))

    def _finished(self) -> int:
        return sum(view.state.is_finished() for view in StudyReader(self.url).trials("study"))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def gateway(url: str) -> Iterator[Gateway]:
    gateway = Gateway.open(url, make_plan(), driver="test")
    yield gateway
    gateway.close()


def _ask(source: SweepSource) -> TrialSpec:
    trial = source.next_trial()
    assert isinstance(trial, TrialSpec)
    return trial


def _tell(source: SweepSource, trial: TrialSpec) -> None:
    with source.together():
        source.on_report(report(trial, 10, 0.5))
        source.on_end(trial.number, completed(0.5))


def test_listeners_hear_and_checkpoints_go_once_it_is_committed(gateway: Gateway, url: str) -> None:
    seen = Seen(url)
    source = SweepSource(gateway, seen, seen)
    with source.together():
        trials = [_ask(source), _ask(source)]
        assert seen.heard == []
    assert seen.heard == [("started 0", 0), ("started 1", 0)]
    seen.heard.clear()
    with source.together():
        for trial in trials:
            source.on_report(report(trial, 10, 0.5))
            source.on_end(trial.number, completed(0.5, adapter=f"adapters/{trial.number}"))
        assert seen.heard == [("bring adapters/0", 0), ("bring adapters/1", 0)]
    after = [f"{what} {number}" for number in (0, 1) for what in ("reported", "forget checkpoints/study/", "ended")]
    assert [(what.replace("study/ ", "study/"), 2) for what in after] == seen.heard[2:]
    seen.heard.clear()
    _ask(source)
    assert seen.heard == [("started 2", 2)]


def test_of_what_was_not_committed_nobody_hears(gateway: Gateway, url: str) -> None:
    seen = Seen(url)
    source = SweepSource(gateway, seen, seen)
    trial = _ask(source)
    seen.heard.clear()

    def fail(connection: sa.Connection) -> None:
        raise sa.exc.OperationalError("COMMIT", None, Exception("the disk is gone"))

    sa.event.listen(gateway.ledger._engine, "commit", fail)
    with pytest.raises(ResourceError, match="the disk is gone"):
        _tell(source, trial)
    sa.event.remove(gateway.ledger._engine, "commit", fail)
    assert seen.heard == []
    source.on_end(0, completed(0.5))
    assert seen.heard == [("forget checkpoints/study/0", 1), ("ended 0", 1)]
