"""`sweeper export` and `sweeper predict`: take the winner away, or use it at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sweeper.cli.console import people
from sweeper.cli.options import HomeOption, StorageOption, StudyArgument


def export(
    number: Annotated[str, typer.Argument(help="Number of the trial, or `best`.")],
    folder: Annotated[Path, typer.Argument(help="Where to write; must not exist yet.")],
    name: StudyArgument = None,
    merged: Annotated[bool, typer.Option("--merged", help="Write the base model with the adapter folded in.")] = False,
    home: HomeOption = None,
    storage: StorageOption = None,
) -> None:
    """Copy a trial's adapter (PEFT format), or the whole merged model, to a folder."""
    from sweeper.errors import StudyError
    from sweeper.sweep.export import export as write
    from sweeper.sweep.query import find

    if number != "best" and not number.isdecimal():
        raise StudyError(f"{number!r} is no trial; give its number, or `best`")
    place = find(name, home=home, storage=storage)
    written = write(place, None if number == "best" else int(number), folder, merged=merged)
    people(soft_wrap=True).print(f"trial {written.trial} written to {written.folder}: {written.how}", highlight=False, markup=False)


def predict(
    name: Annotated[str, typer.Argument(help="Name of the study.")],
    text: Annotated[str | None, typer.Argument(help="One text; or use --file.", show_default=False)] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="csv, jsonl or parquet with the study's columns, or .txt: a text a line.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where to write the answers of --file, as csv; default: print.")] = None,
    trial: Annotated[int | None, typer.Option("--trial", help="Another trial than the winner.")] = None,
    home: HomeOption = None,
    storage: StorageOption = None,
) -> None:
    """What the winner answers to a text, or to every row of a file."""
    from sweeper.errors import UserError
    from sweeper.sweep.predict import predict_file, predict_text
    from sweeper.sweep.query import find

    if (text is None) == (file is None):
        raise UserError("give one text or --file FILE, and only one of them")
    place = find(name, home=home, storage=storage)
    if text is not None:
        answer = predict_text(place, text, number=trial)
        shares = "   ".join(f"{label} {share:.1%}" for label, share in answer.probabilities.items())
        print(answer.answer + (f"    ({shares})" if shares else ""))
        return
    assert file is not None
    table = predict_file(place, file, number=trial)
    if out is not None:
        with out.open("w", newline="") as handle:
            table.write_csv(handle)
        people(soft_wrap=True).print(f"{len(table.rows)} answers written to {out}", highlight=False, markup=False)
    else:
        table.write_csv(sys.stdout)
