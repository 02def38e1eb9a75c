"""`sweeper mlflow` and `sweeper dashboard`: the well-known pages on this sweep's stores, on 127.0.0.1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sweeper.cli.console import people
from sweeper.cli.options import HomeOption, StorageOption, StudyArgument

if TYPE_CHECKING:
    from sweeper.sweep.serve import Page

PortOption = Annotated[int | None, typer.Option("--port", min=1, max=65535, help="Port on 127.0.0.1.")]


def mlflow(name: StudyArgument = None, port: PortOption = None, home: HomeOption = None, storage: StorageOption = None) -> None:
    """Open MLflow's page on the runs of a sweep."""
    from sweeper.sweep.query import find
    from sweeper.sweep.serve import mlflow_page

    _serve(mlflow_page(find(name, home=home, storage=storage), port))


def dashboard(name: StudyArgument = None, port: PortOption = None, home: HomeOption = None, storage: StorageOption = None) -> None:
    """Open Optuna's dashboard on the study database."""
    from sweeper.sweep.query import find
    from sweeper.sweep.serve import dashboard_page

    _serve(dashboard_page(find(name, home=home, storage=storage), port))


def _serve(page: Page) -> None:
    from sweeper.sweep.serve import serve

    people(soft_wrap=True).print(f"{page.what}: {page.url}   (Ctrl-C stops it)", highlight=False, markup=False)
    raise typer.Exit(serve(page))
