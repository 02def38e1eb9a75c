"""SQL views for people: `sweeper_trials`, `sweeper_reports`, `sweeper_decisions`, one row per trial, metric value and decision.

They read our tables alone: a view over Optuna's would stand in the way of its own migrations. A view changes only together
with a migration, which makes all of them anew. Does not know who asks. Costs what the query costs.
"""

from __future__ import annotations

import sqlalchemy as sa

from sweeper.spec.space import SEARCHABLE

VIEWS = ("sweeper_trials", "sweeper_reports", "sweeper_decisions")


def create_views(connection: sa.Connection) -> None:
    """Drops and makes the views."""
    drop_views(connection)
    dialect = connection.dialect.name
    for name, body in zip(VIEWS, (_trials(dialect), _reports(dialect), _decisions(dialect)), strict=True):
        connection.exec_driver_sql(f"CREATE VIEW {name} AS {body}")


def drop_views(connection: sa.Connection) -> None:
    """Removes the views."""
    for name in VIEWS:
        connection.exec_driver_sql(f"DROP VIEW IF EXISTS {name}")


def _trials(dialect: str) -> str:
    quote = "`" if dialect == "mysql" else ""  # `rank` is a word of its own there
    params = ", ".join(
        f"{_json(dialect, 't.params', key, kind)} AS {quote}{key}{quote}" for key, kind in sorted(SEARCHABLE.items())
    )
    return f"""
        SELECT t.study, t.number AS trial, t.state, t.value, t.reason, t.source, {params},
               t.budget AS full_examples, t.examples, t.nominal, t.step, t.attempt + 1 AS attempts,
               COALESCE(r.train_seconds, 0) AS train_seconds, COALESCE(r.evaluate_seconds, 0) AS evaluate_seconds,
               COALESCE(r.tokens, 0) AS tokens, t.feasible, t.adapter, t.checkpoint, t.outcomes,
               {_time(dialect, "t.started_ms")} AS started, {_time(dialect, "t.ended_ms")} AS ended
        FROM swp_trials t
        LEFT JOIN (SELECT study, number, SUM(train_seconds) AS train_seconds, SUM(evaluate_seconds) AS evaluate_seconds,
                          SUM(tokens) AS tokens FROM swp_runs GROUP BY study, number) r
               ON r.study = t.study AND r.number = t.number"""


def _reports(dialect: str) -> str:
    return f"""
        SELECT p.study, p.number AS trial, p.attempt, p.kind, p.nominal, p.examples, p.step, m.name AS metric, m.value,
               p.rows_read, p.train_seconds, p.evaluate_seconds, p.tokens, p.worker, p.outcomes,
               {_time(dialect, "p.time_ms")} AS time
        FROM swp_reports p
        JOIN swp_metrics m ON m.study = p.study AND m.number = p.number AND m.attempt = p.attempt AND m.nominal = p.nominal"""


def _decisions(dialect: str) -> str:
    return f"""
        SELECT d.study, d.number AS trial, d.attempt, d.nominal, d.action, d.reason, d.pruner, d.value, d.cutoff,
               d.rank AS ranking, d.compared, {_time(dialect, "d.time_ms")} AS time
        FROM swp_decisions d"""


def _json(dialect: str, column: str, key: str, kind: str) -> str:
    if dialect == "postgresql":
        cast = {"float": "::double precision", "int": "::bigint"}.get(kind, "")
        return f"(({column})::json ->> '{key}'){cast}"
    if dialect == "mysql":
        text = f"NULLIF(JSON_UNQUOTE(JSON_EXTRACT({column}, '$.{key}')), 'null')"
        return {"float": f"{text} + 0e0", "int": f"CAST({text} AS SIGNED)"}.get(kind, text)
    return f"json_extract({column}, '$.{key}')"


def _time(dialect: str, column: str) -> str:
    if dialect == "postgresql":
        return f"to_char(to_timestamp({column} / 1000.0) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')"
    if dialect == "mysql":
        # FROM_UNIXTIME would answer in the session's time zone.
        return f"CAST(TIMESTAMPADD(SECOND, {column} DIV 1000, TIMESTAMP '1970-01-01 00:00:00') AS CHAR)"
    return f"datetime({column} / 1000, 'unixepoch')"
