"""Alembic's environment: runs on the connection that it is handed, under its own version table.

Does not know Optuna's tables, which it must never touch. Costs what a migration costs.
"""

from __future__ import annotations

from typing import Any

from alembic import context

from sweeper.study.migrate import VERSION_TABLE
from sweeper.study.tables import METADATA


def _include(name: str | None, kind: str, _parents: Any) -> bool:
    return kind != "table" or (name or "").startswith("swp_")


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
    include_name=_include,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
