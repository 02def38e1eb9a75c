"""Arguments that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HomeOption = Annotated[
    Path | None, typer.Option("--home", envvar="SWEEPER_HOME", help="Folder of sweeps.", show_default="./sweeps")
]
StorageOption = Annotated[
    str | None,
    typer.Option("--storage", envvar="SWEEPER_STORAGE", help="Database URL of the study, if this home does not know it."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override any key of the spec, e.g. training.rank=4; may be repeated."),
]
SpecArgument = Annotated[Path, typer.Argument(help="The sweep's YAML file.", show_default=False)]
StudyArgument = Annotated[
    str | None, typer.Argument(help="Name of the study; not needed if the home has just one.", show_default=False)
]
