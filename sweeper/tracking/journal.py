"""A file per run of what a tracker was told, for trackers that cannot be asked.

Purpose: W&B and Comet, offline or not, cannot say which values they hold already. A run's journal can: one JSON line per
call, written through to the operating system at once, so that kill -9 loses nothing and a line torn by it is passed over.
Values that are already in the journal are not told again.
Does not know: W&B, Comet. Cost: one short write a call; reading a run of 1,000 values takes milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sweeper.tracking.base import TAG_TRIAL, Metric

_Key = tuple[str, int, int]  # name, step, time


@dataclass
class RunFacts:
    """What a journal says of its run. `sent` counts the metrics a service has taken."""

    name: str = ""
    parent: str = ""
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[_Key, Metric] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)  # folder in the run -> path on disk
    spec: object = None
    sent: int = 0


class Journals:
    """The journals of one tracker, `<folder>/<run>.jsonl`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._facts: dict[str, RunFacts] = {}

    def run_id(self, *parts: str) -> str:
        """An id made of `parts`, the same whenever it is asked for: letters, digits, dots and dashes, at most 64 characters."""
        whole = "-".join(parts)
        clean = re.sub(r"[^A-Za-z0-9.-]+", "-", whole)
        if clean == whole and len(clean) <= 64:
            return clean
        return f"{clean[:52]}-{hashlib.sha256(whole.encode()).hexdigest()[:10]}"

    def known(self, run: str) -> bool:
        """Whether the run has a journal."""
        return run in self._facts or self._path(run).exists()

    def facts(self, run: str) -> RunFacts:
        """What the journal says; of a run without one, nothing."""
        if run not in self._facts:
            self._facts[run] = self._read(run)
        return self._facts[run]

    def note(self, run: str, **entry: object) -> None:
        """Writes one entry, whose keys are fields of RunFacts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.facts(run)  # read before it grows
        with open(self._path(run), "a", encoding="utf-8") as file:
            file.write("\n" if _torn(self._path(run)) else "")
            file.write(json.dumps(entry, default=str) + "\n")
        _apply(self._facts[run], entry)

    def fresh(self, run: str, metrics: Iterable[Metric]) -> list[Metric]:
        """Those of `metrics` that the journal lacks, each once."""
        known = self.facts(run).metrics
        return list({_key(m): m for m in metrics if _key(m) not in known}.values())

    def note_metrics(self, run: str, metrics: Sequence[Metric]) -> None:
        """Writes metrics that were told."""
        if metrics:
            self.note(run, metrics=[[m.name, m.value, m.step, m.time_ms] for m in metrics])

    def trials(self, sweep: str) -> dict[int, str]:
        """Runs of trials below `sweep`, by number."""
        found: dict[int, str] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            facts = self.facts(path.name.removesuffix(".jsonl"))
            if facts.parent == sweep and TAG_TRIAL in facts.tags:
                found[int(facts.tags[TAG_TRIAL])] = path.name.removesuffix(".jsonl")
        return found

    def _path(self, run: str) -> Path:
        return self.folder / f"{run}.jsonl"

    def _read(self, run: str) -> RunFacts:
        facts = RunFacts()
        try:
            lines = self._path(run).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return facts
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                _apply(facts, entry)
        return facts


def _torn(path: Path) -> bool:
    """Whether the file's last line was cut off in the middle of a write."""
    with open(path, "rb") as file:
        if file.seek(0, 2) == 0:
            return False
        file.seek(-1, 2)
        return file.read(1) != b"\n"


def _key(metric: Metric) -> _Key:
    return metric.name, metric.step, metric.time_ms


def _apply(facts: RunFacts, entry: Mapping[str, object]) -> None:
    for name, value in entry.items():
        if name == "metrics" and isinstance(value, list):
            rows = (Metric(str(n), float(v), int(s), int(t)) for n, v, s, t in value)
            facts.metrics.update({_key(metric): metric for metric in rows})
        elif name in ("params", "tags", "artifacts") and isinstance(value, dict):
            getattr(facts, name).update({str(key): str(item) for key, item in value.items()})
        elif name in ("name", "parent", "spec", "sent"):
            setattr(facts, name, value)
