"""`sweeper run`: the sweep itself, with a live display on a terminal and plain lines elsewhere."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import typer

from sweeper.cli.console import people
from sweeper.cli.options import HomeOption, SetOption, SpecArgument


def run(spec: SpecArgument, overrides: SetOption = None, home: HomeOption = None) -> None:
    """Run a sweep; the same command goes on after an interruption, and shows the result of a finished one."""
    from sweeper.cli.display import Display
    from sweeper.cli.tables import print_result
    from sweeper.sweep.run import Interrupted
    from sweeper.sweep.run import run as sweep

    console = people()
    try:
        result = sweep(spec, home=home, overrides=overrides or (), listener=Display(console))
    except Interrupted as stopped:
        console.print(f"[yellow]{stopped}[/]", highlight=False)
        console.print(f"go on with: {_again(spec, overrides or (), home)}", highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None
    except KeyboardInterrupt:
        console.print("interrupted before the first trial; nothing is lost", highlight=False)
        console.print(f"begin again with: {_again(spec, overrides or (), home)}", highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None
    print_result(console, result, _home_flag(home))
    if result.best is None:
        raise typer.Exit(3)


def _again(spec: Path, overrides: list[str] | tuple[()], home: Path | None) -> str:
    words = ["sweeper", "run", str(spec)]
    for override in overrides:
        words += ["--set", override]
    return shlex.join(words) + _home_flag(home)


def _home_flag(home: Path | None) -> str:
    given = home is not None and any(word == "--home" or word.startswith("--home=") for word in sys.argv)
    return f" --home {shlex.quote(str(home))}" if given else ""
