"""The console that verbs print to."""

from __future__ import annotations

from rich.console import Console

WIDTH = 150
"""Columns where there is no terminal to fit tables to."""


def people(soft_wrap: bool = False) -> Console:
    """As wide as the terminal, or WIDTH where there is none."""
    console = Console(soft_wrap=soft_wrap)
    return console if console.is_terminal else Console(soft_wrap=soft_wrap, width=WIDTH)
