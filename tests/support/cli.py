"""Runs the command line in this process, as the installed command would, and keeps what it printed."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from unittest import mock

from sweeper.cli import main


@dataclass(frozen=True)
class Ran:
    """Exit code and output of one command."""

    code: int
    out: str
    err: str


def sweeper_command(*words: object) -> Ran:
    """`sweeper WORDS...`; a traceback would come through as the exception itself."""
    out, err = io.StringIO(), io.StringIO()
    arguments: Sequence[str] = ["sweeper", *(str(word) for word in words)]
    code: object = 0
    with mock.patch.object(sys, "argv", arguments), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code
    return Ran(code if isinstance(code, int) else (0 if code is None else 1), out.getvalue(), err.getvalue())
