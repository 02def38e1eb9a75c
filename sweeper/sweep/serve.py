"""`mlflow` and `dashboard`: the well-known pages, started on the stores of one study, on 127.0.0.1.

Does not know what the pages show. Cost: a child process each, until it is stopped.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweeper.errors import ResourceError
from sweeper.spec.mask import mask
from sweeper.study.drivers import parse
from sweeper.sweep.query import Place
from sweeper.sweep.signals import sigterm_interrupts
from sweeper.sweep.use import spec_of
from sweeper.tracking.factory import default_mlflow_uri, mlflow_artifact_root
from sweeper.tracking.serve import DASHBOARD_PORT, HOST, MLFLOW_PORT, dashboard_command, free_port, mlflow_command


@dataclass(frozen=True)
class Page:
    """A page that can be served: what it is, where it will be, and the process that serves it."""

    what: str
    url: str
    command: Sequence[str]
    environment: Mapping[str, str]


def mlflow_page(place: Place, port: int | None = None) -> Page:
    """MLflow's page on the runs of a sweep. Raises BusyError if the port is in use, ResourceError if there is nothing to show."""
    tracker = next((item for item in spec_of(place).tracking if item.kind == "mlflow"), None)
    if tracker is None:
        raise ResourceError(
            f"study {place.study!r} was not tracked in MLflow; `sweeper dashboard {place.study}` shows it in Optuna's"
        )
    named = place.home.mlflow_of(place.study) or tracker.uri
    if named is not None and named.startswith(("http://", "https://")):
        raise ResourceError(f"study {place.study!r} is tracked by the MLflow server at {mask(named)}; open that address")
    uri = named or default_mlflow_uri(place.home.root)
    chosen = free_port(MLFLOW_PORT if port is None else port)
    command, environment = mlflow_command(uri, mlflow_artifact_root(place.home.root), chosen)
    return Page("MLflow", f"http://{HOST}:{chosen}", command, environment)


def dashboard_page(place: Place, port: int | None = None) -> Page:
    """Optuna's dashboard on the study database. Raises BusyError if the port is in use."""
    chosen = free_port(DASHBOARD_PORT if port is None else port)
    # A URL without a driver is completed as the study's own is; Optuna would take another one.
    command, environment = dashboard_command(parse(place.storage).render_as_string(hide_password=False), chosen)
    return Page("Optuna dashboard", f"http://{HOST}:{chosen}", command, environment)


def serve(page: Page) -> int:
    """Serves until Ctrl-C or SIGTERM; returns the process's own exit status, 0 if it was stopped so."""
    process = subprocess.Popen(page.command, env=dict(page.environment))
    try:
        with sigterm_interrupts():
            return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
