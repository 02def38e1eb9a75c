"""The first tables: sweeps, drivers, trials, attempts, outbox, reports, decisions, checkpoints, verdicts, reviews, trackers.

Frozen: later changes are later revisions. Does not know Optuna's tables. Costs a second at most.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from sweeper.study.views import create_views, drop_views

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TEXT = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql")
_REAL = sa.Float().with_variant(sa.Double(), "mysql")
_KEY_PATH = sa.String(1000).with_variant(sa.String(500), "mysql")
_TABLES = (
    "tracker_runs",
    "trackers",
    "reviews",
    "verdicts",
    "checkpoints",
    "decisions",
    "metrics",
    "reports",
    "events",
    "runs",
    "trials",
    "terms",
    "fence",
    "changes",
    "sweeps",
)


def upgrade() -> None:
    """Creates all tables and views."""
    if op.get_bind().dialect.name == "mysql":
        # It commits every table by itself. What a creation that was killed has left is empty, and made anew.
        _drop_tables(if_exists=True)
    _create(
        "swp_changes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study", sa.String(length=200), nullable=False),
        sa.Column("term", sa.Integer(), nullable=False),
        sa.Column("time_ms", sa.BigInteger(), nullable=False),
        sa.Column("field", sa.String(length=200), nullable=False),
        sa.Column("old", _TEXT, nullable=True),
        sa.Column("new", _TEXT, nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_swp_changes_study", "swp_changes", ["study"])
    _create(
        "swp_checkpoints",
        sa.Column("study", sa.String(length=200), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", _KEY_PATH, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("nominal", sa.Integer(), nullable=False),
        sa.Column("examples", sa.Integer(), nullable=False),
        sa.Column("time_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("study", "number", "name"),
    )
    _create(
        "swp_decisions",
        sa.Column("study", sa.String(length=200), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("nominal", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("reason", _TEXT, nullable=False),
        sa.Column("pruner", sa.String(length=40), nullable=False),
        sa.Column("value", _REAL, nullable=True),
        sa.Column("cutoff", _REAL, nullable=True),
        sa.Column("rank", sa.Integer(), nullable=True),
        sa.Column("compared", sa.Integer(), nullable=False),
        sa.Column("evidence", _TEXT, nullable=False),
        sa.Column("time_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("study", "number", "attempt", "nominal"),
    )
    _create(
        "swp_events",
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("study", sa.String(length=200), nullable=False),
        sa.Column("key", sa.String(length=300), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=True),
        sa.Column("payload", _TEXT, nullable=False),
        sa.Column("time_ms", sa.BigInteger(), nullable=False),
        sa.Column("done", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("study", "key", name="uq_swp_events_key"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_swp_events_order", "swp_events", ["study", "seq"])
    _create(
        "swp_fence",
        sa.Column("study", sa.String(length=200), nullable=False),
        sa.Column("term", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("study"),
    )
    _create(
        "swp_metrics",
        sa.Column("study", sa.String(length=200), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("nominal", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("value", _REAL, nullable=True),
        sa.PrimaryKeyConstraint("study", "number", "attempt", "nominal", "name"),
    )
    _create(
        "swp_reports",
        sa.Column("study", sa.String(length=200), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("nominal", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("examples", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("time_ms", sa.BigInteger(), nullable=False),
        sa.Column("value", _REAL, nullable=True),
        sa.Column("outcomes", sa.String(length=1000), nullable=True),
        sa.Column("checkpoint", sa.String(length=1000), nullable=True),
        sa.Column("rows_read", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("train_seconds", _REAL, nullable=False),
        sa.Column("evaluate_seconds", _REAL, nullable=False),
        sa.Column("worker", sa.String(length=200), nullable=False),
        sa.PrimaryKeyConstraint("study", "number", "attempt", "nominal"),
    )
    _create(
        "swp_reviews",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study", sa.String(length=200), nullable=False),
        sa.Column("number", sa.Integer(), nullable=True),
        sa.Column("row_id", sa.String(length=128), nullable=False),
        sa.Column("reviewer", sa.String(length=200), nullable=False),
        sa.Column("verdict", sa.String(length=40), nullable=False),
        sa.Column("note", _TEXT, nullable=False),
        sa.Column("time_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_swp_reviews_study", "swp_reviews", ["study"])
    _create(
        "swp_runs",
        sa.Column("study", sa.String(length=200), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("term", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(length=200), nullable=False),
        sa.Column("ending", sa.String(length=16), nullable=True),
        sa.Column("reason", _TEXT, nullable=False),
        sa.Column("examples", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("train_seconds", _REAL, nullable=False),
        sa.Column("evaluate_seconds", _REAL, nullable=False),
        sa.Column("started_ms", sa.BigInteger(), nullable=False),
        sa.Column("ended_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("study", "number", "attempt"),
    )
    _create(
        "swp_sweeps",
        sa.Column("study", sa.String(length=200), nullable=False),
        sa.Column("identity", sa.String(length=128), nullable=False),
        sa.Column("plan", _TEXT, nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("ended_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("study"),
    )
    _create(
        "swp_terms",
        sa.Column("study", sa.String(length=200), nullable=False),
        sa.Column("term", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("driver", sa.String(length=200), nullable=False),
        sa.Column("host", sa.String(length=200), nullable=False),
        sa.Column("machine", sa.String(length=400), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("pid_started", _REAL, nullable=False),
        sa.Column("started_ms", sa.BigInteger(), nullable=False),
        sa.Column("beat_ms", sa.BigInteger(), nullable=False),
        sa.Column("ended_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("study", "term"),
    )
    _create(
        "swp_tracker_runs",
        sa.Column("study", sa.String(length=200), nullable=False),
        sa.Column("tracker", sa.String(length=200), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("run", sa.String(length=500), nullable=False),
        sa.PrimaryKeyConstraint("study", "tracker", "number"),
    )
    _create(
        "swp_trackers",
        sa.Column("study", sa.String(length=200), nullable=False),
        sa.Column("tracker", sa.String(length=200), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("study", "tracker"),
    )
    _create(
        "swp_trials",
        sa.Column("study", sa.String(length=200), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("trial_id", sa.Integer(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("params", _TEXT, nullable=False),
        sa.Column("drawn", _TEXT, nullable=False),
        sa.Column("asked", _TEXT, nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("budget", sa.Integer(), nullable=False),
        sa.Column("evaluations", _TEXT, nullable=False),
        sa.Column("rungs", _TEXT, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("held_by", sa.String(length=200), nullable=True),
        sa.Column("held_until_ms", sa.BigInteger(), nullable=True),
        sa.Column("checkpoint", sa.String(length=1000), nullable=True),
        sa.Column("nominal", sa.Integer(), nullable=False),
        sa.Column("examples", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("reason", _TEXT, nullable=False),
        sa.Column("objective", _TEXT, nullable=True),
        sa.Column("value", _REAL, nullable=True),
        sa.Column("metrics", _TEXT, nullable=False),
        sa.Column("feasible", sa.Boolean(), nullable=True),
        sa.Column("adapter", sa.String(length=1000), nullable=True),
        sa.Column("outcomes", sa.String(length=1000), nullable=True),
        sa.Column("finish_order", sa.Integer(), nullable=True),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("started_ms", sa.BigInteger(), nullable=True),
        sa.Column("ended_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("study", "number"),
    )
    _create(
        "swp_verdicts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study", sa.String(length=200), nullable=False),
        sa.Column("number", sa.Integer(), nullable=True),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("payload", _TEXT, nullable=False),
        sa.Column("time_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_swp_verdicts_study", "swp_verdicts", ["study"])
    create_views(op.get_bind())


def downgrade() -> None:
    """Removes them, with everything in them."""
    drop_views(op.get_bind())
    _drop_tables()


def _create(name: str, *columns: Any, **options: Any) -> None:
    op.create_table(name, *columns, mysql_engine="InnoDB", mysql_charset="utf8mb4", mysql_collate="utf8mb4_bin", **options)


def _drop_tables(if_exists: bool | None = None) -> None:
    for table in _TABLES:
        op.drop_table(f"swp_{table}", if_exists=if_exists)
