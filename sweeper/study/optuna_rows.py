"""Optuna's rows, written as statements: what its storage does for a trial's start, value and end, without its object mapper.

Purpose: the three writes that come with every trial, for many trials at once. Optuna's storage reads each trial, parameter and
value before it writes it, some thirty queries for a trial's start; a driver that alone writes to the study, in a transaction of
its own, needs five for any number of them. The rows are the same: a test holds them side by side. Tables are those of Optuna's
schema `SCHEMA`; with any other, or a trial that is not as expected, the caller goes through Optuna's storage.
Does not know our tables. Cost: about 0.1 ms a statement on SQLite, and 10 us a row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from sweeper.records import ParamValue

SCHEMA = "v3.2.0.a"
"""`RDBStorage.get_head_version()` of the Optuna whose tables these are."""

_TABLES = sa.MetaData()
_STUDIES = sa.Table("studies", _TABLES, sa.Column("study_id", sa.Integer, primary_key=True))
_TRIALS = sa.Table(
    "trials",
    _TABLES,
    sa.Column("trial_id", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer),
    sa.Column("study_id", sa.Integer),
    sa.Column("state", sa.Enum(OptunaState)),
    sa.Column("datetime_start", sa.DateTime),  # both naive UTC
    sa.Column("datetime_complete", sa.DateTime),
)
_PARAMS = sa.Table(
    "trial_params",
    _TABLES,
    sa.Column("param_id", sa.Integer, primary_key=True),
    sa.Column("trial_id", sa.Integer),
    sa.Column("param_name", sa.String(512)),
    sa.Column("param_value", sa.Float(53)),
    sa.Column("distribution_json", sa.Text),
)
_VALUES = sa.Table(
    "trial_values",
    _TABLES,
    sa.Column("trial_value_id", sa.Integer, primary_key=True),
    sa.Column("trial_id", sa.Integer),
    sa.Column("objective", sa.Integer),
    sa.Column("value", sa.Float(53)),
    sa.Column("value_type", sa.Enum("FINITE", "INF_POS", "INF_NEG", name="trialvaluetype")),
)
_CURVE = sa.Table(
    "trial_intermediate_values",
    _TABLES,
    sa.Column("trial_intermediate_value_id", sa.Integer, primary_key=True),
    sa.Column("trial_id", sa.Integer),
    sa.Column("step", sa.Integer),
    sa.Column("intermediate_value", sa.Float(53)),
    sa.Column("intermediate_value_type", sa.Enum("FINITE", "INF_POS", "INF_NEG", "NAN", name="trialintermediatevaluetype")),
)
_ATTRIBUTES = sa.Table(
    "trial_user_attributes",
    _TABLES,
    sa.Column("trial_user_attribute_id", sa.Integer, primary_key=True),
    sa.Column("trial_id", sa.Integer),
    sa.Column("key", sa.String(512)),
    sa.Column("value_json", sa.Text),
)
_SPECIAL = {"INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}

_LOCK_STUDY = sa.select(_STUDIES.c.study_id).where(_STUDIES.c.study_id == sa.bindparam("study_id")).with_for_update()
_LAST = (
    sa.select(_TRIALS.c.trial_id, _TRIALS.c.number)
    .where(_TRIALS.c.study_id == sa.bindparam("study_id"))
    .order_by(_TRIALS.c.trial_id.desc())
    .limit(1)
)
_CREATED = (
    sa.select(_TRIALS.c.trial_id)
    .where(_TRIALS.c.study_id == sa.bindparam("study_id"), _TRIALS.c.trial_id > sa.bindparam("after"))
    .order_by(_TRIALS.c.number)
)
_IDS: sa.BindParameter[int] = sa.bindparam("ids", expanding=True)
_RUNNING = (
    sa.select(_TRIALS.c.trial_id).where(_TRIALS.c.trial_id.in_(_IDS), _TRIALS.c.state == OptunaState.RUNNING).with_for_update()
)
_STEPS = (
    sa.select(_CURVE.c.trial_id, _CURVE.c.step, _CURVE.c.intermediate_value, _CURVE.c.intermediate_value_type)
    .where(_CURVE.c.trial_id.in_(_IDS))
    .order_by(_CURVE.c.trial_id, _CURVE.c.step)
)
_FORGET = sa.delete(_ATTRIBUTES).where(_ATTRIBUTES.c.trial_id.in_(_IDS), _ATTRIBUTES.c.key == "reason")
_END = (
    sa.update(_TRIALS)
    .where(_TRIALS.c.trial_id == sa.bindparam("id"))
    .values(state=sa.bindparam("to"), datetime_complete=sa.bindparam("at"))
)


@dataclass(frozen=True)
class New:
    """A trial that begins: its number, parameters and user attributes."""

    number: int
    drawn: Mapping[str, ParamValue]
    attributes: Mapping[str, object]


@dataclass(frozen=True)
class Value:
    """A value at a step of a trial, by Optuna's id. `again`: there may be one at that step."""

    trial_id: int
    step: int
    value: float
    again: bool = False


@dataclass(frozen=True)
class End:
    """How a trial ended. `values`: of a COMPLETE one."""

    trial_id: int
    state: OptunaState
    values: Sequence[float] | None
    reason: str
    drawn: Mapping[str, ParamValue]


def create(
    connection: sa.Connection, study_id: int, trials: Sequence[New], distributions: Mapping[str, BaseDistribution]
) -> list[int] | None:
    """Writes RUNNING trials of rising numbers; returns Optuna's ids, or None, with nothing written, if the first is not next."""
    if connection.dialect.name != "sqlite":  # there the transaction has the whole file
        connection.execute(_LOCK_STUDY, {"study_id": study_id})
    last = connection.execute(_LAST, {"study_id": study_id}).first()
    if trials[0].number != (0 if last is None else last.number + 1):
        return None
    now = _utc_now()
    rows = [{"number": new.number, "study_id": study_id, "state": OptunaState.RUNNING, "datetime_start": now} for new in trials]
    connection.execute(sa.insert(_TRIALS), rows)
    after = -1 if last is None else last.trial_id
    ids = [int(found) for found in connection.execute(_CREATED, {"study_id": study_id, "after": after}).scalars()]
    params = [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": distributions[name].to_internal_repr(value),
            "distribution_json": distribution_to_json(distributions[name]),
        }
        for trial_id, new in zip(ids, trials, strict=True)
        for name, value in new.drawn.items()
    ]
    if params:
        connection.execute(sa.insert(_PARAMS), params)
    attributes = [
        {"trial_id": trial_id, "key": name, "value_json": json.dumps(value)}
        for trial_id, new in zip(ids, trials, strict=True)
        for name, value in new.attributes.items()
    ]
    if attributes:
        connection.execute(sa.insert(_ATTRIBUTES), attributes)
    return ids


def report(connection: sa.Connection, values: Sequence[Value]) -> list[Value]:
    """Writes finite values at steps that have none; returns those that were not written, since their trial is not RUNNING."""
    # Not one statement for both: how many rows several of them wrote is something that drivers do not agree on.
    running = set(connection.execute(_RUNNING, {"ids": [value.trial_id for value in values]}).scalars())
    rows = [
        {"trial_id": value.trial_id, "step": value.step, "intermediate_value": value.value, "intermediate_value_type": "FINITE"}
        for value in values
        if value.trial_id in running
    ]
    if rows:
        connection.execute(sa.insert(_CURVE), rows)
    return [value for value in values if value.trial_id not in running]


def finish(connection: sa.Connection, ends: Sequence[End], distributions: Mapping[str, BaseDistribution]) -> dict[int, FrozenTrial]:
    """Ends those of the trials that are RUNNING, and returns them, by Optuna's id, as a sampler learns from them, without
    constraints. A PRUNED one gets its last intermediate value, as Optuna does it."""
    ids = [end.trial_id for end in ends]
    running = set(connection.execute(_RUNNING, {"ids": ids}).scalars())
    ends = [end for end in ends if end.trial_id in running]
    if not ends:
        return {}
    now = _utc_now()
    connection.execute(_END, [{"id": end.trial_id, "to": end.state, "at": now} for end in ends])
    curves: dict[int, dict[int, float]] = {}
    for trial_id, step, value, kind in connection.execute(_STEPS, {"ids": ids}):
        curves.setdefault(trial_id, {})[step] = _SPECIAL.get(kind, value)
    told = {end.trial_id: _told(end, curves.get(end.trial_id, {}), distributions) for end in ends}
    values = [
        {"trial_id": trial_id, "objective": index, "value": value, "value_type": "FINITE"}
        for trial_id, trial in told.items()
        for index, value in enumerate(trial.values or [])
    ]
    if values:
        connection.execute(sa.insert(_VALUES), values)
    reasons = [{"trial_id": end.trial_id, "key": "reason", "value_json": json.dumps(end.reason)} for end in ends if end.reason]
    if reasons:
        connection.execute(_FORGET, {"ids": [row["trial_id"] for row in reasons]})
        connection.execute(sa.insert(_ATTRIBUTES), reasons)
    return told


def _told(end: End, curve: dict[int, float], distributions: Mapping[str, BaseDistribution]) -> FrozenTrial:
    values = end.values
    if end.state is OptunaState.PRUNED and curve and not math.isnan(last := curve[max(curve)]):
        values = [last]
    used = {name: distributions[name] for name in end.drawn}
    return create_trial(
        state=end.state,
        values=values,
        params={name: used[name].to_external_repr(used[name].to_internal_repr(value)) for name, value in end.drawn.items()},
        distributions=used,
        intermediate_values=curve,
    )


def _utc_now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
