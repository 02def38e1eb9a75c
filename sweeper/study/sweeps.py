"""The study's own row: what makes it this study, and what changed between its runs.

Does not know trials. Cost: a query.
"""

from __future__ import annotations

import json

import sqlalchemy as sa

from sweeper.errors import StudyError
from sweeper.spec.identity import differences
from sweeper.study.ledger import Ledger
from sweeper.study.plan import StudyPlan, plan_from_json
from sweeper.study.tables import SWEEPS, now_ms

_NAMED = 6


def read_plan(connection: sa.Connection, study: str) -> StudyPlan | None:
    """The stored plan of a study, if it exists."""
    text = connection.execute(sa.select(SWEEPS.c.plan).where(SWEEPS.c.study == study)).scalar()
    return None if text is None else plan_from_json(text)


def check_identity(engine: sa.Engine, plan: StudyPlan) -> bool:
    """Whether the study exists. Raises StudyError, naming what differs, if it exists with another identity."""
    with engine.begin() as connection:
        stored = read_plan(connection, plan.name)
    if stored is None:
        return False
    if stored.identity != plan.identity:
        differ = differences(_made_of(stored), _made_of(plan)) or ["the identity differs"]
        more = f"; and {len(differ) - _NAMED} more" if len(differ) > _NAMED else ""
        raise StudyError(
            f"study {plan.name!r} exists with other settings: {'; '.join(differ[:_NAMED])}{more}. Its trials cannot be compared "
            "with new ones: set that back, or give this sweep another name"
        )
    return True


def write_sweep(ledger: Ledger, plan: StudyPlan, term: int) -> None:
    """Stores the plan, or what of it has changed since the last run; the sweep is running."""
    with ledger.begin() as connection:
        stored = read_plan(connection, plan.name)
        if stored is None:
            row = {"study": plan.name, "identity": plan.identity, "plan": plan.to_json(), "created_ms": now_ms(connection)}
            connection.execute(sa.insert(SWEEPS).values(**row, status="running"))
            return
        ledger.write_changes(connection, term, plan.differences(stored))
        mine = SWEEPS.c.study == plan.name
        connection.execute(sa.update(SWEEPS).where(mine).values(plan=plan.to_json(), status="running", ended_ms=None))


def _made_of(plan: StudyPlan) -> dict[str, object]:
    if plan.parts:
        return dict(plan.parts)
    flat: dict[str, object] = json.loads(plan.to_json())
    kept = ("space", "defaults", "metrics", "directions", "at", "constraints", "data_fingerprint", "examples")
    sections = ("model", "data", "training")
    return {**{key: flat[key] for key in kept}, **{key: plan.spec.get(key) for key in sections}}
