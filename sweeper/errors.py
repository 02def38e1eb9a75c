"""The error tree: everything that Sweeper raises on purpose.

    SweeperError
    ├── UserError                 the user can mend it: one sentence, exit code 2, never a traceback
    │   ├── SpecError             the spec is wrong; carries every problem found, each with its YAML path and line
    │   ├── DataError             a data file, column, label or row cannot be used
    │   ├── ModelError            a base model or its tokenizer cannot be used
    │   ├── StudyError            no such study or trial, or the name belongs to another study
    │   ├── BusyError             another driver runs this sweep, or a port is taken
    │   └── ResourceError         database, disk, device, cluster or tracker out of reach
    ├── TrialError                one trial failed; the sweep goes on (NaN, exploding loss, out of memory)
    └── FencedError               another driver has taken over this study; this one may write nothing more

Every message says what came, what is allowed and what to do. Knows nothing of the packages that raise these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class SweeperError(Exception):
    """Base of everything Sweeper raises on purpose."""


class UserError(SweeperError):
    """The user can mend it. The command line prints the message alone and exits with 2."""


@dataclass(frozen=True)
class Problem:
    """One mistake in a spec: where it stands, what came, what is allowed, what to do."""

    path: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        line = "" if self.line is None else f"line {self.line}"
        where = f"{self.path} ({line})" if self.path and line else self.path or line
        return f"{where}: {self.message}" if where else self.message


class SpecError(UserError):
    """The spec is wrong; `problems` holds all mistakes that were found, in the order of the file."""

    def __init__(self, problems: Sequence[Problem], source: str = "spec") -> None:
        self.problems = tuple(problems)
        self.source = source
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {problem}" for problem in self.problems)]))


class DataError(UserError):
    """A data file, column, label or row cannot be used."""


class ModelError(UserError):
    """A base model or its tokenizer cannot be used."""


class StudyError(UserError):
    """No such study or trial, or the name belongs to a study with another identity."""


class BusyError(UserError):
    """Another driver runs this sweep, or a port is taken."""


class ResourceError(UserError):
    """A database, disk, device, cluster or tracker is out of reach."""


class TrialError(SweeperError):
    """One trial failed; it ends as FAIL with this message as its reason, and the sweep goes on."""


class FencedError(SweeperError):
    """Another driver has taken over this study; this one may write nothing more."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """The end of a sentence about an unknown `word`: the nearest allowed one if there is any, and all that are allowed."""
    names = sorted(allowed)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}allowed: {', '.join(names)}"
