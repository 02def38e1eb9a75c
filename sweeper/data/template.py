"""Prompt templates: text with column names in braces, `Review: {text}\\nSentiment:`; `{{` and `}}` are plain braces.

Nothing is evaluated: a brace holds a column's name and no more.
Does not know: tokens, tasks. Cost: a join a row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweeper.data.fingerprint import as_text
from sweeper.errors import DataError, nearest

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True)
class Template:
    """A parsed template: literal texts and columns by turns, `pieces[0]` literal, `pieces[1]` a column, and so on."""

    pieces: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it names, each once."""
        return tuple(dict.fromkeys(self.pieces[1::2]))

    @property
    def ends_open(self) -> bool:
        """Whether it ends in a column or in a word, so that the answer needs a space before it."""
        last = self.pieces[-1]
        return not last or not last[-1].isspace()

    @property
    def ends_in_column(self) -> bool:
        """Whether the last thing is a column's text, whose own end is then trimmed."""
        return not self.pieces[-1]

    def render(self, columns: Mapping[str, Sequence[object]]) -> list[str]:
        """The text of each row of a batch."""
        rows = len(next(iter(columns.values()))) if columns else 0
        parts = [
            [as_text(value) for value in columns[piece]] if place % 2 else [piece] * rows for place, piece in enumerate(self.pieces)
        ]
        texts = ["".join(row) for row in zip(*parts, strict=True)]
        return [text.rstrip() for text in texts] if self.ends_in_column else texts


def parse(text: str, available: Sequence[str], roles: Mapping[str, str | None]) -> Template:
    """Parses a template against the columns of the data.

    A role's name (text, prompt) stands for the column that plays it, where no column has that name itself. Raises DataError
    for a lone brace, an unknown column or a template without any.
    """
    pieces, literal, place = [], "", 0
    for match in _PIECE.finditer(text):
        literal += text[place : match.start()]
        place = match.end()
        found = match.group()
        if found in ("{{", "}}"):
            literal += found[0]
        elif match.group(1) is None:
            raise DataError(f"data.template has a lone {found!r} at character {match.start() + 1}; write {found * 2!r} for a brace")
        else:
            pieces += [literal, _column(match.group(1).strip(), available, roles)]
            literal = ""
    pieces.append(literal + text[place:])
    if len(pieces) == 1:
        raise DataError(f"data.template {text!r} names no column, so every prompt would be the same; write column names in braces")
    return Template(tuple(pieces))


def names_in(text: str) -> tuple[str, ...]:
    """What stands in the braces of a template, each once; escaped braces name nothing. For data that is not at hand."""
    return tuple(dict.fromkeys(match.group(1).strip() for match in _PIECE.finditer(text) if match.group(1) is not None))


def _column(name: str, available: Sequence[str], roles: Mapping[str, str | None]) -> str:
    if name in available:
        return name
    played = roles.get(name)
    if played is not None:
        return played
    raise DataError(f"data.template names the column {name!r}, which the data does not have; {nearest(name, available)}")
