"""A disk that fills while a sweep runs: one sentence, no trial lost, and the same command goes on once there is room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

import sweeper
from sweeper.errors import ResourceError
from sweeper.records import Decision, Report, TrialState
from sweeper.sweep.listen import Silent
from tests.conftest import SpecMaker
from tests.support.disk import small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 300 MB."""
    with small_disk(tmp_path / "disk", "300m") as folder:
        yield folder


class Filler(Silent):
    """Fills the disk but for a few kilobytes when a trial first reports."""

    def __init__(self, disk: Path) -> None:
        self.file = disk / "filler"

    def reported(self, report: Report, decision: Decision) -> None:
        if report.trial == 1 and not self.file.exists():
            with self.file.open("wb") as file:
                try:
                    while file.write(bytes(64 << 10)):
                        file.flush()
                except OSError:
                    file.truncate(max(0, file.tell() - (8 << 10)))


def test_a_disk_that_fills_costs_no_trial(make_spec: SpecMaker, tmp_path: Path, disk: Path) -> None:
    # Study and tracker elsewhere: it is the depot's disk that fills.
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    spec = make_spec(storage=storage, tracking=[])
    filler = Filler(disk)
    with pytest.raises(ResourceError, match=r"make room"):
        sweeper.run(spec, home=disk / "home", listener=filler)
    states = [trial.state.name for trial in optuna.load_study(study_name="tiny", storage=storage).trials]
    assert "RUNNING" not in states
    assert "FAIL" not in states
    assert "WAITING" in states
    filler.file.unlink()
    result = sweeper.run(spec, home=disk / "home")
    assert len(result.trials) == 6
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in result.trials)
