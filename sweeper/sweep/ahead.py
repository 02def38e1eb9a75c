"""Whether a sweep's engines are begun before its model and rows are ready.

Purpose: only a sweep that will train, as far as that can be seen at once, starts Ray: no finished one, whose result is only shown,
and none whose files are not there, which ends with a sentence.
Does not know how a cluster is begun. Cost: a query or two, where there is a study; then what `executors.begun` takes.
"""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING

from sweeper.errors import SweeperError
from sweeper.executors.factory import begin
from sweeper.spec.models import SweepSpec
from sweeper.study.read import StudyReader
from sweeper.sweep.home import Home

if TYPE_CHECKING:
    from sweeper.executors.begun import Begun


def begin_ahead(spec: SweepSpec, home: Home) -> Begun | None:
    """The cluster of a sweep that will train in one of our own, being started; else None. Raises nothing that the user can mend."""
    return begin(spec) if _files_there(spec) and _will_train(spec, home) else None


def _files_there(spec: SweepSpec) -> bool:
    model, rows = spec.model.name, spec.data.path
    path_like = model.startswith((".", "/", "~")) or model.endswith(".gguf")
    if path_like and not Path(model).expanduser().exists():
        return False
    return rows is None or bool(glob.glob(str(Path(rows).expanduser())))


def _will_train(spec: SweepSpec, home: Home) -> bool:
    """Whether the study is new, has trials to end, or is to get more of them."""
    try:
        reader = StudyReader.of(spec.storage or home.default_storage, spec.name)
        if reader is None:
            return True
        trials = reader.trials(spec.name)
    except SweeperError:
        return False
    more = spec.search.trials is not None and len(trials) < spec.search.trials
    return more or any(not trial.state.is_finished() for trial in trials)
