"""Turns one event of the ledger into tracker calls.

Purpose: the one place that knows both the kinds of events and the words of trackers. Every call may come twice.
    sweep_started   spec, tags, data set        trial_started   parameters
    report          metrics at their own time   decision        rung and reason as tags
    trial_ended     final metrics, adapter, state               winner   marks the run, repeats its facts on the sweep's run
    sweep_ended     status
Does not know: threads, retries, or how a tracker stores things. Cost: that of the tracker.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sweeper.records import ReportKind, TrialState
from sweeper.tracking.base import TAG_REASON, TAG_RUNG, TAG_STUDY, TAG_SWEEP, Metric, Tracker, TrackerRefusedError

PROGRESS_MS = 10_000
"""Of a trial's progress reports, one is told in so many milliseconds; evaluations are all told."""

ADAPTER_BYTES = 256 * 2**20
"""Larger results (fully fine-tuned models) are handed to a tracker for the winner only."""

_COSTS = ("examples", "step", "train_seconds", "evaluate_seconds", "tokens", "rows")


class EventRow(Protocol):
    """One line of the outbox."""

    @property
    def id(self) -> int: ...

    @property
    def kind(self) -> str: ...

    @property
    def trial(self) -> int | None: ...

    @property
    def payload(self) -> Mapping[str, Any]: ...

    @property
    def time_ms(self) -> int: ...


class OutboxLedger(Protocol):
    """What the outbox asks of the ledger, from its own threads."""

    def pending(self, tracker: str, limit: int = 200) -> Sequence[EventRow]:
        """Events in order that this tracker has not been told."""
        ...

    def sent(self, tracker: str, upto: int, runs: Mapping[int, str] = ...) -> None:
        """Sets the tracker's cursor: everything up to that event has been told. Notes the tracker's runs of trials with it."""
        ...

    def tracker_runs(self, tracker: str) -> Mapping[int, str]:
        """The tracker's runs of all trials."""
        ...

    def tracker_run(self, tracker: str, trial: int | None) -> str | None:
        """The tracker's run of a trial, or of the sweep."""
        ...

    def set_tracker_run(self, tracker: str, trial: int | None, run: str) -> None:
        """Notes it."""
        ...


class Teller:
    """Tells one tracker. Raises what the tracker raises, and TrackerRefusedError for an event that fits nowhere."""

    def __init__(self, ledger: OutboxLedger, tracker: Tracker, depot_root: Path) -> None:
        self._ledger = ledger
        self._tracker = tracker
        self._depot = depot_root
        self._sweep: str | None = None
        self._runs: dict[int, str] | None = None  # by trial; the ledger's, which nobody else writes for this tracker, and `new`
        self.new: dict[int, str] = {}
        """Runs of trials that the ledger does not know yet: to be noted there with the cursor."""

        self._progress: dict[int, int] = {}  # trial -> time of the progress report told last
        self._kinds: dict[str, Callable[[EventRow], None]] = {
            "sweep_started": self._sweep_started,
            "engines": self._engines,
            "trial_started": self._trial_started,
            "report": self._report,
            "decision": self._decision,
            "trial_ended": self._trial_ended,
            "winner": self._winner,
            "sweep_ended": self._sweep_ended,
        }

    def tell(self, event: EventRow) -> None:
        """Tells the tracker of `event`; kinds unknown here are passed over, since newer versions may write more."""
        told = self._kinds.get(event.kind)
        if told is not None:
            told(event)

    def _sweep_started(self, event: EventRow) -> None:
        payload = event.payload
        spec = payload.get("spec") or {}
        tags = {str(key): str(value) for key, value in (payload.get("tags") or {}).items()}
        study = tags.get(TAG_STUDY) or str(spec.get("name", "sweep"))
        # The event is written once, so its time names the sweep also after a crash right here.
        tags.setdefault(TAG_SWEEP, f"{study}-{event.time_ms}")
        tags.update({f"version.{name}": str(version) for name, version in (payload.get("versions") or {}).items()})
        run = self._ledger.tracker_run(self._tracker.key, None)
        run = self._tracker.start_sweep(study, spec, tags, run, event.time_ms)
        self._ledger.set_tracker_run(self._tracker.key, None, run)
        self._sweep = run
        for fact in _facts(payload.get("dataset")):
            self._tracker.log_dataset(
                run,
                str(fact.get("name", study)),
                str(fact.get("digest", "")),
                str(fact.get("source", "")),
                str(fact.get("context", "training")),
                fact.get("profile") or {},
            )

    def _engines(self, event: EventRow) -> None:
        engines, most = event.payload.get("engines") or [], event.payload.get("most")
        slots = max((int(engine.get("slots", 1)) for engine in engines), default=1)
        tags = {"executor": event.payload.get("kind"), "engines": len(engines), "slots": slots, "trials_sharing_a_model": most}
        self._tracker.set_tags(self._sweep_run(), {f"sweeper.{name}": str(value) for name, value in tags.items()})

    def _trial_started(self, event: EventRow) -> None:
        number, sweep = _number(event), self._sweep_run()
        tags = {f"sweeper.{name}": str(event.payload[name]) for name in ("attempt", "source", "seed") if name in event.payload}
        runs = self._trial_runs()
        known = runs.get(number)
        run = self._tracker.start_trial(sweep, number, event.payload.get("params") or {}, tags, known, event.time_ms)
        if run != known:
            # Killed before it is noted, the trial is started again, and the tracker finds its run by its number.
            runs[number] = self.new[number] = run

    def _report(self, event: EventRow) -> None:
        number, payload = _number(event), event.payload
        time_ms = int(payload.get("time_ms") or event.time_ms)
        values = dict(payload.get("metrics") or {})
        if payload.get("kind") == ReportKind.PROGRESS.value:
            last = self._progress.get(number)
            if last is not None and 0 <= time_ms - last < PROGRESS_MS:
                return
            self._progress[number] = time_ms
        else:
            values.update({f"cost/{name}": payload[name] for name in _COSTS if payload.get(name)})
        metrics = _metrics(values, int(payload.get("nominal") or 0), time_ms)
        if metrics:
            self._tracker.log(self._run(number), metrics)

    def _decision(self, event: EventRow) -> None:
        payload = event.payload
        tags = {"sweeper.decision": str(payload.get("action", ""))}
        if payload.get("rung") is not None:
            tags[TAG_RUNG] = str(payload["rung"])
        if payload.get("reason"):
            tags[TAG_REASON] = str(payload["reason"])
        self._tracker.set_tags(self._run(_number(event)), tags)

    def _trial_ended(self, event: EventRow) -> None:
        number, payload = _number(event), event.payload
        run, state = self._run(number), TrialState(str(payload["state"]))
        final = {f"final/{_short(name)}": value for name, value in (payload.get("metrics") or {}).items()}
        metrics = _metrics(final, int(payload.get("nominal") or 0), event.time_ms)
        if metrics:
            self._tracker.log(run, metrics)
        adapter = self._folder(payload.get("adapter"))
        if adapter is not None and _bytes(adapter) <= ADAPTER_BYTES:
            self._tracker.log_artifact(run, adapter, "adapter")
        self._tracker.end_trial(run, state, str(payload.get("reason") or ""), event.time_ms)

    def _winner(self, event: EventRow) -> None:
        payload = event.payload
        number = int(payload["trial"])
        sweep, run = self._sweep_run(), self._run(number)
        values = {f"winner/{_short(name)}": value for name, value in (payload.get("metrics") or {}).items()}
        self._tracker.mark_winner(sweep, run, number, payload.get("params") or {}, _metrics(values, 0, event.time_ms))
        compared = {f"winner.{name}": str(value) for name, value in (payload.get("comparison") or {}).items()}
        if payload.get("verdict"):
            compared["sweeper.verdict"] = str(payload["verdict"])
        if compared:
            self._tracker.set_tags(sweep, compared)
        adapter = self._folder(payload.get("adapter"))
        if adapter is not None and _bytes(adapter) > ADAPTER_BYTES:
            self._tracker.log_artifact(run, adapter, "adapter")

    def _sweep_ended(self, event: EventRow) -> None:
        payload = event.payload
        self._tracker.end_sweep(self._sweep_run(), bool(payload.get("finished")), str(payload.get("reason") or ""), event.time_ms)

    def _run(self, trial: int) -> str:
        run = self._trial_runs().get(trial)
        if run is None:
            raise TrackerRefusedError(f"trial {trial} has no run there")
        return run

    def _trial_runs(self) -> dict[int, str]:
        if self._runs is None:
            self._runs = dict(self._ledger.tracker_runs(self._tracker.key))
        return self._runs

    def _sweep_run(self) -> str:
        self._sweep = self._sweep or self._ledger.tracker_run(self._tracker.key, None)
        if self._sweep is None:
            raise TrackerRefusedError("the sweep has no run there")
        return self._sweep

    def _folder(self, name: object) -> Path | None:
        """A folder of the depot, if it is there and lies inside."""
        if not name:
            return None
        folder = (self._depot / str(name)).resolve()
        return folder if folder.is_dir() and folder.is_relative_to(self._depot.resolve()) else None


def _number(event: EventRow) -> int:
    if event.trial is None:
        raise TrackerRefusedError(f"event {event.id} ({event.kind}) names no trial")
    return event.trial


def _metrics(values: Mapping[str, object], step: int, time_ms: int) -> list[Metric]:
    numbers = ((name, _float(value)) for name, value in values.items())
    return [Metric(name, number, step, time_ms) for name, number in numbers if number is not None]


def _float(value: object) -> float | None:
    """A number, also where JSON could only keep it as text (`NaN`, `Infinity`)."""
    if value is None or isinstance(value, bool):
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None if not isinstance(value, str) else math.nan


def _short(name: str) -> str:
    return name.removeprefix("validation/")


def _facts(dataset: object) -> list[Mapping[str, Any]]:
    if isinstance(dataset, Mapping):
        return [dataset]
    return list(dataset) if isinstance(dataset, list | tuple) else []


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
