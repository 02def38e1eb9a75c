"""Optuna's side of a study: the few writes that the gateway makes, for many trials at once, whole or not at all.

Purpose: the truth in Optuna's own tables, so that its tools see true states and every intermediate value.
Optuna commits each call by itself; `within` makes its calls part of a transaction of ours instead, each in a savepoint.
What comes with every trial goes through `optuna_rows.py`, the rest, and whatever is not as expected, through Optuna's storage.
Does not know our tables, samplers or pruners. Cost: 0.2-0.6 ms for a write of any number of trials on SQLite, 3-6 ms for
each through Optuna's storage.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import optuna
import sqlalchemy as sa
from optuna.distributions import BaseDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState
from sqlalchemy import orm

from sweeper.errors import StudyError
from sweeper.records import ParamValue, TrialState
from sweeper.study import optuna_rows
from sweeper.study.optuna_rows import End, New
from sweeper.study.optuna_rows import Value as Value
from sweeper.study.plan import StudyPlan
from sweeper.study.samplers import quiet_optuna

_STATES = {
    TrialState.COMPLETE: OptunaState.COMPLETE,
    TrialState.PRUNED: OptunaState.PRUNED,
    TrialState.FAIL: OptunaState.FAIL,
}


@dataclass(frozen=True)
class Ended:
    """How a trial of this number ended. A constraint is met at 0 or below."""

    number: int
    end: End
    constraints: Mapping[str, float]


def ended(
    number: int,
    trial_id: int,
    state: TrialState,
    values: Sequence[float] | None,
    reason: str,
    constraints: Mapping[str, float],
    drawn: Mapping[str, ParamValue],
) -> Ended:
    """The end of a trial as Optuna keeps it."""
    return Ended(number, End(trial_id, _STATES[state], values, reason[:2000], drawn), constraints)


class OptunaStore:
    """One study in Optuna's storage."""

    def __init__(self, storage: optuna.storages.RDBStorage, plan: StudyPlan) -> None:
        quiet_optuna()
        self._storage = storage
        self._single = len(plan.directions) == 1
        is_new = not has_study(storage, plan.name)
        self._study = optuna.create_study(
            storage=storage,
            study_name=plan.name,
            directions=list(plan.directions),
            sampler=RandomSampler(seed=0),
            pruner=optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        self._id = storage.get_study_id_from_name(plan.name)
        self._rows = storage.get_head_version() == optuna_rows.SCHEMA
        self._sessions = orm.sessionmaker(join_transaction_mode="create_savepoint")
        if is_new:
            self._study.set_metric_names([f"validation/{name}" for name in plan.metrics])
            self._study.set_user_attr("sweeper", {"identity": plan.identity, "full_examples": plan.full, "rungs": list(plan.rungs)})

    @contextlib.contextmanager
    def within(self, connection: sa.Connection) -> Iterator[None]:
        """What Optuna reads and writes in here belongs to this connection's transaction: it is committed with it, or not at all."""
        own = self._storage.scoped_session
        self._storage.scoped_session = orm.scoped_session(partial(self._sessions, bind=connection))  # type: ignore[arg-type]
        try:
            yield
        finally:
            self._storage.scoped_session.remove()
            self._storage.scoped_session = own

    def trials(self) -> dict[int, FrozenTrial]:
        """All trials by number, as Optuna has them."""
        return {trial.number: trial for trial in self._storage.get_all_trials(self._id, deepcopy=False)}

    def trial(self, trial_id: int) -> FrozenTrial:
        """One trial as Optuna has it."""
        return self._storage.get_trial(trial_id)

    def create(self, connection: sa.Connection, trials: Sequence[New], distributions: Mapping[str, BaseDistribution]) -> list[int]:
        """Writes RUNNING trials with all their parameters; returns Optuna's ids of them."""
        if self._rows:
            ids = optuna_rows.create(connection, self._id, trials, distributions)
            if ids is not None:
                return ids
        return [self._create(new, distributions) for new in trials]

    def _create(self, new: New, distributions: Mapping[str, BaseDistribution]) -> int:
        template = create_trial(
            state=OptunaState.RUNNING,
            params=dict(new.drawn),
            distributions={key: distributions[key] for key in new.drawn},
            user_attrs=dict(new.attributes),
        )
        trial_id = self._storage.create_new_trial(self._id, template_trial=template)
        found = self._storage.get_trial_number_from_id(trial_id)
        if found != new.number:
            raise StudyError(
                f"Optuna numbered a new trial {found} where {new.number} was next: something else has written to this study; "
                "only `sweeper run` may; start over under another name"
            )
        return trial_id

    def resume(self, trial_id: int) -> None:
        """WAITING to RUNNING; nothing if it runs already."""
        self._storage.set_trial_state_values(trial_id, OptunaState.RUNNING)

    def report(self, connection: sa.Connection, values: Sequence[Value]) -> None:
        """Intermediate values. Optuna takes none where there are several objectives."""
        if not self._single:
            return
        plain: list[Value] = []
        slow: list[Value] = []
        for value in values:
            (plain if self._rows and not value.again and is_number(value.value) else slow).append(value)
        if plain:
            slow += optuna_rows.report(connection, plain)
        for value in slow:
            # Somebody may have ended the trial by hand; the next opening says so.
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                self._storage.set_trial_intermediate_value(value.trial_id, value.step, value.value)

    def wait(self, trial_id: int) -> None:
        """RUNNING to WAITING: paused or interrupted."""
        if self._storage.get_trial(trial_id).state is OptunaState.RUNNING:
            self._storage.set_trial_state_values(trial_id, OptunaState.WAITING)

    def finish(
        self, connection: sa.Connection, ends: Sequence[Ended], distributions: Mapping[str, BaseDistribution]
    ) -> list[FrozenTrial]:
        """Tells the ends of trials and returns them; nothing is told of one that has ended there."""
        plain = [ended.end for ended in ends if self._rows and not ended.constraints]
        told = optuna_rows.finish(connection, plain, distributions) if plain else {}
        return [told.get(ended.end.trial_id) or self._finish(ended) for ended in ends]

    def _finish(self, ended: Ended) -> FrozenTrial:
        end, trial_id = ended.end, ended.end.trial_id
        known = self._storage.get_trial(trial_id)
        if known.state.is_finished():
            return known
        if known.state is OptunaState.WAITING:
            self.resume(trial_id)
        if end.reason:
            self._storage.set_trial_user_attr(trial_id, "reason", end.reason)
        if ended.constraints:
            trial = optuna.Trial(self._study, trial_id)
            for key in sorted(set(ended.constraints) - set(trial.constraints)):
                trial.set_constraint(key, ended.constraints[key])
        self._study.tell(known.number, list(end.values) if end.values is not None else None, state=end.state)
        return self._storage.get_trial(trial_id)


def has_study(storage: optuna.storages.RDBStorage, name: str) -> bool:
    """Whether Optuna knows a study of this name."""
    return name in optuna.get_all_study_names(storage)


def is_number(value: object) -> bool:
    """Whether `value` is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
