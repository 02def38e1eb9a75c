"""Optuna's rows, written as statements: what its storage does for a trial's start, value and end, without its object mapper.

Purpose: the three writes that come with every trial. Optuna's storage reads each trial, parameter and value before it writes it,
some thirty queries for a trial's start; a driver that alone writes to the study, in a transaction of its own, needs five. The
rows are the same: a test holds them side by side. Tables are those of Optuna's schema `SCHEMA`; with any other, or a trial that is
not as expected, the caller goes through Optuna's storage.
Does not know our tables. Cost: about 0.1 ms a statement on SQLite.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
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
    sa.select(_TRIALS.c.number).where(_TRIALS.c.study_id == sa.bindparam("study_id")).order_by(_TRIALS.c.trial_id.desc()).limit(1)
)
_REPORT = sa.insert(_CURVE).from_select(
    ["trial_id", "step", "intermediate_value", "intermediate_value_type"],
    sa.select(
        _TRIALS.c.trial_id,
        sa.bindparam("step", type_=_CURVE.c.step.type),
        sa.bindparam("value", type_=_CURVE.c.intermediate_value.type),
        sa.literal("FINITE", _CURVE.c.intermediate_value_type.type),
    ).where(_TRIALS.c.trial_id == sa.bindparam("id"), _TRIALS.c.state == OptunaState.RUNNING),
)
_STEPS = (
    sa.select(_CURVE.c.step, _CURVE.c.intermediate_value, _CURVE.c.intermediate_value_type)
    .where(_CURVE.c.trial_id == sa.bindparam("id"))
    .order_by(_CURVE.c.step)
)
_FORGET = sa.delete(_ATTRIBUTES).where(_ATTRIBUTES.c.trial_id == sa.bindparam("id"), _ATTRIBUTES.c.key == "reason")
_END = (
    sa.update(_TRIALS)
    .where(_TRIALS.c.trial_id == sa.bindparam("id"), _TRIALS.c.state == OptunaState.RUNNING)
    .values(state=sa.bindparam("to"), datetime_complete=sa.bindparam("at"))
)


def create(
    connection: sa.Connection,
    study_id: int,
    number: int,
    drawn: Mapping[str, ParamValue],
    distributions: Mapping[str, BaseDistribution],
    attributes: Mapping[str, object],
) -> int | None:
    """Writes a RUNNING trial with its parameters; returns Optuna's id, or None, with nothing written, if `number` is not next."""
    if connection.dialect.name != "sqlite":  # there the transaction has the whole file
        connection.execute(_LOCK_STUDY, {"study_id": study_id})
    last = connection.execute(_LAST, {"study_id": study_id}).scalar()
    if number != (0 if last is None else last + 1):
        return None
    row = {"number": number, "study_id": study_id, "state": OptunaState.RUNNING, "datetime_start": _utc_now()}
    key = connection.execute(sa.insert(_TRIALS), row).inserted_primary_key
    assert key is not None
    trial_id = int(key[0])
    params = [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": distributions[name].to_internal_repr(value),
            "distribution_json": distribution_to_json(distributions[name]),
        }
        for name, value in drawn.items()
    ]
    if params:
        connection.execute(sa.insert(_PARAMS), params)
    rows = [{"trial_id": trial_id, "key": name, "value_json": json.dumps(value)} for name, value in attributes.items()]
    if rows:
        connection.execute(sa.insert(_ATTRIBUTES), rows)
    return trial_id


def report(connection: sa.Connection, trial_id: int, step: int, value: float) -> bool:
    """Writes a finite value at a step that has none; False, with nothing written, if the trial is not RUNNING."""
    return bool(connection.execute(_REPORT, {"id": trial_id, "step": step, "value": value}).rowcount)


def finish(
    connection: sa.Connection,
    trial_id: int,
    state: OptunaState,
    values: Sequence[float] | None,
    reason: str,
    drawn: Mapping[str, ParamValue],
    distributions: Mapping[str, BaseDistribution],
) -> FrozenTrial | None:
    """Ends a trial and returns it as a sampler learns from it, without constraints.

    A PRUNED one gets its last intermediate value, as Optuna does it. None, with nothing written, if the trial is not RUNNING.
    """
    if not connection.execute(_END, {"id": trial_id, "to": state, "at": _utc_now()}).rowcount:
        return None
    curve = {step: _SPECIAL.get(kind, value) for step, value, kind in connection.execute(_STEPS, {"id": trial_id})}
    if state is OptunaState.PRUNED and curve and not math.isnan(last := curve[max(curve)]):
        values = [last]
    if values is not None:
        rows = [
            {"trial_id": trial_id, "objective": index, "value": value, "value_type": "FINITE"} for index, value in enumerate(values)
        ]
        connection.execute(sa.insert(_VALUES), rows)
    if reason:
        connection.execute(_FORGET, {"id": trial_id})
        connection.execute(sa.insert(_ATTRIBUTES), {"trial_id": trial_id, "key": "reason", "value_json": json.dumps(reason)})
    used = {name: distributions[name] for name in drawn}
    return create_trial(
        state=state,
        values=values,
        params={name: used[name].to_external_repr(used[name].to_internal_repr(value)) for name, value in drawn.items()},
        distributions=used,
        intermediate_values=curve,
    )


def _utc_now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
