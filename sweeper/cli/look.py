"""`sweeper status`, `trials`, `show`, `best`: reading verbs; they work beside a running sweep."""

from __future__ import annotations

import csv
import json
import sys
import time
from typing import Annotated

import typer
from rich.live import Live
from rich.table import Table

from sweeper.cli.console import people
from sweeper.cli.options import HomeOption, StorageOption, StudyArgument

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def status(
    name: StudyArgument = None,
    watch: Annotated[bool, typer.Option("--watch", help="Draw again every two seconds until the sweep stops.")] = False,
    home: HomeOption = None,
    storage: StorageOption = None,
) -> None:
    """Where a sweep stands, also one that another process runs."""
    from sweeper.cli.tables import status_view
    from sweeper.sweep.query import find
    from sweeper.sweep.query import status as look

    place = find(name, home=home, storage=storage)
    console = people()
    now = look(place)
    if not watch:
        console.print(status_view(now))
        return
    with Live(status_view(now), console=console, refresh_per_second=2) as live:
        while now.running:
            time.sleep(2)
            now = look(place)
            live.update(status_view(now))


def trials(
    name: StudyArgument = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: JsonFlag = False,
    home: HomeOption = None,
    storage: StorageOption = None,
) -> None:
    """All trials of a study."""
    from sweeper.cli.tables import trial_records, trial_table
    from sweeper.sweep.query import find
    from sweeper.sweep.query import status as look

    now = look(find(name, home=home, storage=storage))
    records = trial_records(now.trials)
    if as_json:
        print(json.dumps(records, indent=2, default=str))
    elif as_csv:
        fields = list(dict.fromkeys(key for record in records for key in record))
        writer = csv.DictWriter(sys.stdout, fields, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    else:
        people().print(trial_table(now.plan, now.trials, now.best))


def show(
    number: Annotated[int, typer.Argument(help="Number of the trial.")],
    name: StudyArgument = None,
    home: HomeOption = None,
    storage: StorageOption = None,
) -> None:
    """One trial: configuration, every report, every decision with its evidence."""
    from sweeper.cli.tables import duration
    from sweeper.cli.tables import number as figure
    from sweeper.sweep.query import find
    from sweeper.sweep.query import show as look

    history = look(find(name, home=home, storage=storage), number)
    trial, console = history.trial, people(soft_wrap=True)
    console.print(
        f"trial {trial.number}: {trial.state}{': ' + trial.reason if trial.reason else ''}", highlight=False, markup=False
    )
    console.print(", ".join(f"{key}={figure(value)}" for key, value in sorted(trial.params.items())), highlight=False, markup=False)
    names = sorted({key for report in history.reports for key in report.metrics})
    table = Table("examples", "kind", *names, box=None, pad_edge=False, header_style="bold")
    for report in history.reports:
        table.add_row(str(report.nominal), report.kind, *(figure(report.metrics.get(key)) for key in names))
    console.print(table)
    for decision in history.decisions:
        console.print(f"{decision.action} at {decision.nominal}: {decision.reason}", highlight=False, markup=False)
    if trial.seconds:
        console.print(f"{duration(trial.seconds)} on a worker, {trial.attempts} start(s)", highlight=False)


def best(name: StudyArgument = None, as_json: JsonFlag = False, home: HomeOption = None, storage: StorageOption = None) -> None:
    """The winner: its configuration, its metrics and the path of its PEFT adapter."""
    from sweeper.cli.tables import number as figure
    from sweeper.sweep.query import adapter_of, find
    from sweeper.sweep.query import best as winner

    place = find(name, home=home, storage=storage)
    trial = winner(place)
    adapter = adapter_of(place, trial)
    if as_json:
        print(
            json.dumps(
                {"trial": trial.number, "params": dict(trial.params), "metrics": dict(trial.metrics), "adapter": str(adapter)},
                indent=2,
            )
        )
        return
    console = people(soft_wrap=True)
    console.print(f"trial {trial.number} of study {place.study}", highlight=False)
    for key, value in sorted(trial.params.items()):
        console.print(f"  {key}: {figure(value)}", highlight=False, markup=False)
    for key, value in sorted(trial.metrics.items()):
        console.print(f"  {key}: {figure(value)}", highlight=False, markup=False)
    console.print(f"  adapter: {adapter}", highlight=False, markup=False)
