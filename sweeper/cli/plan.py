"""`sweeper plan`: what a sweep will cost, before it costs anything."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from sweeper.cli.console import people
from sweeper.cli.options import HomeOption, SetOption, SpecArgument


def plan(
    spec: SpecArgument,
    overrides: SetOption = None,
    home: HomeOption = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="Price of an hour of a GPU, or of a core where there is none.", show_default=False)
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="At most so long is probed.")] = 60.0,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", "--gpus", min=1, help="Engines to plan for; default: what this machine holds.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Forecast a sweep: trials, hours, money, when it ends, what it needs; probes for a minute, writes nothing to the study."""
    from sweeper.cli.display import Display
    from sweeper.cli.outlook import outlook_lines, outlook_record
    from sweeper.sweep.plan import plan as look_ahead

    console = people(soft_wrap=True)
    display = Display(console)
    try:
        found = look_ahead(
            spec,
            overrides=overrides or (),
            home=home,
            price=price,
            seconds=seconds,
            workers=workers,
            progress=None if as_json else display.progress,
        )
    finally:
        display.finish()
    if as_json:
        print(json.dumps(outlook_record(found), indent=2, default=str))
        return
    for what, text in outlook_lines(found, time.time()):
        console.print(f"{what:>10}  {text}", highlight=False, markup=False)
