"""Reading verbs: what a sweep is doing and what it found, without touching it. Works beside a running driver.

Does not know how anything is printed. Cost: a few SQL queries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sweeper.errors import ResourceError, StudyError
from sweeper.records import TrialState
from sweeper.study.plan import StudyPlan
from sweeper.study.read import DecisionView, DriverView, ReportView, StudyReader, TrialView
from sweeper.sweep.expected import FORECAST, TOOK, Expected, expected
from sweeper.sweep.home import Home


@dataclass(frozen=True)
class Place:
    """A study found: its name, home and database."""

    study: str
    home: Home
    storage: str

    def reader(self) -> StudyReader:
        """Reads this study's database."""
        return StudyReader(self.storage)


@dataclass(frozen=True)
class Status:
    """Where a sweep stands. `driver` is None where none is at work."""

    place: Place
    plan: StudyPlan
    driver: DriverView | None
    trials: tuple[TrialView, ...]
    best: TrialView | None
    expected: Expected | None = None  # of the last run: its first forecast, and what it took

    @property
    def states(self) -> Mapping[TrialState, int]:
        """Trials by state."""
        return Counter(trial.state for trial in self.trials)

    @property
    def running(self) -> bool:
        """Whether a live driver is at work on it."""
        return self.driver is not None and self.driver.alive


@dataclass(frozen=True)
class TrialHistory:
    """One trial with everything that was reported and decided about it."""

    trial: TrialView
    plan: StudyPlan
    reports: tuple[ReportView, ...]
    decisions: tuple[DecisionView, ...]


def find(name: str | None = None, *, home: Path | str | None = None, storage: str | None = None) -> Place:
    """The study `name`, or the only one there is. Raises StudyError or ResourceError."""
    place = Home.at(home)
    if storage is None:
        study = name or place.only_study()
        url = place.storage_of(study)
    else:
        url = storage
        names = StudyReader(url).studies()
        if name is None and len(names) != 1:
            raise StudyError(f"{len(names)} studies in that database; name one of: {', '.join(names) or 'none'}")
        study = name or names[0]
    if not StudyReader.exists(url):
        raise ResourceError(
            f"the database of study {study!r} is gone or out of reach; name it with --storage, or its home with --home"
        )
    if study not in StudyReader(url).studies():
        raise StudyError(f"no study {study!r} in that database; there are: {', '.join(StudyReader(url).studies()) or 'none'}")
    return Place(study, place, url)


def status(place: Place) -> Status:
    """Where the sweep stands now."""
    reader = place.reader()
    study = place.study
    return Status(
        place,
        reader.plan(study),
        reader.driver(study),
        tuple(reader.trials(study)),
        reader.best(study),
        expected(reader.events(study, FORECAST), reader.events(study, TOOK)),
    )


def show(place: Place, number: int) -> TrialHistory:
    """Everything about one trial. Raises StudyError if there is no such trial."""
    reader = place.reader()
    return TrialHistory(
        _trial(place, number),
        reader.plan(place.study),
        tuple(reader.reports(place.study, number)),
        tuple(reader.decisions(place.study, number)),
    )


def best(place: Place) -> TrialView:
    """The winner. Raises StudyError while no trial has completed."""
    winner = place.reader().best(place.study)
    if winner is None:
        raise StudyError(
            f"no trial of {place.study!r} has completed within the constraints yet; see `sweeper status {place.study}`"
        )
    return winner


def trial_or_best(place: Place, number: int | None) -> TrialView:
    """Trial `number`, or the winner. Raises StudyError."""
    return best(place) if number is None else _trial(place, number)


def adapter_of(place: Place, trial: TrialView) -> Path:
    """Folder of a trial's adapter (PEFT format), or model folder after full fine-tuning. Raises StudyError if there is none."""
    folder = place.home.depot / trial.adapter if trial.adapter else None
    if folder is None or not folder.is_dir():
        raise StudyError(
            f"trial {trial.number} is {trial.state} and has no adapter in {place.home.root}; "
            "only completed trials have one: `sweeper trials` lists them"
        )
    return folder


def _trial(place: Place, number: int) -> TrialView:
    trials = list(place.reader().trials(place.study))
    for trial in trials:
        if trial.number == number:
            return trial
    raise StudyError(
        f"no trial {number} in study {place.study!r}; there are trials 0 to {len(trials) - 1}"
        if trials
        else f"no trial {number}: study {place.study!r} has no trials yet"
    )
