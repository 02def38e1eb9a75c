"""`validate`: a spec checked as far as possible without training. Cost: milliseconds; with `data`, what `prepare` costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeper.spec.load import load_spec
from sweeper.spec.models import SweepSpec
from sweeper.spec.space import SEARCHABLE
from sweeper.sweep.home import Home


@dataclass(frozen=True)
class Checked:
    """A spec that passed, in one line, with sentences worth reading."""

    spec: SweepSpec
    summary: str
    notices: tuple[str, ...]


def validate(
    source: Path | str | Mapping[str, object], *, overrides: Sequence[str] = (), home: Path | str | None = None, data: bool = False
) -> Checked:
    """Checks a spec; with `data` also the model and the rows. Raises SpecError with all problems, DataError or ModelError."""
    spec = load_spec(source, overrides)
    notices: list[str] = []
    fixed = sorted(set(SEARCHABLE) - set(spec.space))
    notices.append(f"searched: {', '.join(sorted(spec.space)) or 'nothing'}; fixed: {', '.join(fixed)}")
    search = spec.search
    budget = f"{search.trials} trials" if search.trials is not None else "no limit of trials"
    summary = f"{budget}, sampler {search.sampler}, pruner {search.pruner}, executor {spec.executor.kind}"
    if data:
        from sweeper.sweep.prepare import prepare

        ready = prepare(spec, Home.at(home), notice=notices.append)
        counts = ready.bundle.counts
        summary += f"; {counts['train']} rows to train on, {counts['validation']} to validate, {counts['test']} sealed"
    elif spec.search.deterministic:
        from sweeper.sweep.order import promises
        from sweeper.sweep.prepare import device

        notices += promises(spec, device(spec))
    return Checked(spec, summary, tuple(notices))
