"""What a study's engines are told before any trial: how heavy the trials of the space may get."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sweeper.spec.load import load_spec
from sweeper.sweep.home import Home
from sweeper.sweep.prepare import prepare


def test_engines_are_told_of_the_heaviest_trial(make_spec: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    space: dict[str, Any] = {"learning_rate": {"low": 1e-4, "high": 1e-2}}
    plain = prepare(load_spec({**make_spec(), "space": space}), home).engine_setup()
    assert (plain.largest_rank, plain.largest_dropout, plain.searched_targets) == (plain.training.rank, plain.training.dropout, ())
    space |= {"rank": [2, 64, 4], "dropout": {"low": 0.0, "high": 0.3}, "targets": ["qv", "all"]}
    wide = prepare(load_spec({**make_spec(), "space": space}), home).engine_setup()
    assert (wide.largest_rank, wide.largest_dropout, wide.searched_targets) == (64, 0.3, ("qv", "all"))
