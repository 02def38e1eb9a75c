"""Switches off what libraries would send home: usage statistics of MLflow, Ray and their friends.

Purpose: `quiet()` runs before any of them is imported, since most read the environment at import. What the user has set is
left alone. Does not know: which of them will be used. Costs nothing.
"""

from __future__ import annotations

import os

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # DO_NOT_TRACK alone does not count for MLflow
    "RAY_USAGE_STATS_ENABLED": "0",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "COMET_ERROR_TRACKING_ENABLE": "false",
    "COMET_DISABLE_ANNOUNCEMENT": "1",
}
"""Variable -> value of every switch."""


def quiet() -> None:
    """Sets each switch that the environment does not name yet."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
