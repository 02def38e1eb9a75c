"""`sweeper validate` and `sweeper doctor`: what is wrong, before anything costs time."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from sweeper.cli.console import people
from sweeper.cli.options import HomeOption, SetOption, SpecArgument


def validate(
    spec: SpecArgument,
    overrides: SetOption = None,
    data: Annotated[bool, typer.Option("--data", help="Also read model and data, as `run` would; trains nothing.")] = False,
    home: HomeOption = None,
) -> None:
    """Check a spec; all mistakes are told at once, each with its YAML path and line."""
    from sweeper.sweep.validate import validate as check

    answer = check(spec, overrides=overrides or (), home=home, data=data)
    console = people(soft_wrap=True)
    console.print(f"[green]ok[/]  {spec}: study {answer.spec.name!r}, {answer.summary}", highlight=False)
    for notice in answer.notices:
        console.print(f"    {notice}", highlight=False)


def doctor(
    spec: Annotated[typer.FileText | None, typer.Option("--spec", help="Also check what this spec needs.")] = None,
    home: HomeOption = None,
) -> None:
    """Check Python, torch, devices, Ray, databases, MLflow and disk: ok, or what to do."""
    from sweeper.spec.load import load_spec
    from sweeper.sweep.doctor import doctor as examine
    from sweeper.sweep.home import Home

    checks = examine(Home.at(home).root, load_spec(spec.name) if spec is not None else None)
    table = Table("", "what", "found", "what to do", box=None, pad_edge=False)
    for item in checks:
        table.add_row("[green]ok[/]" if item.ok else "[red]no[/]", item.name, item.found, item.advice)
    people().print(table)
    if not all(item.ok for item in checks):
        raise typer.Exit(1)
