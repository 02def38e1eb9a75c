"""The one format of benchmarks: goals decide the exit code, JSON holds what the table shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.common import Goal, Measurement, at_least, at_most, finish, interleaved, median, table


def test_a_missed_goal_is_said_and_fails_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = Measurement(
        "speed", [{"side": "a", "seconds": 1.5}], [at_least("gain", 1.5, 1.2, "x"), at_most("cost", 0.01, 0.002)]
    )
    assert finish(measured, tmp_path / "out.json") == 1
    shown = capsys.readouterr().out
    assert "MISSED  gain: 1.2x (goal: at least 1.5x)" in shown
    assert "met     cost: 0.002 (goal: at most 0.01)" in shown
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["rows"] == [{"side": "a", "seconds": 1.5}]
    assert written["goals"][0] == {"what": "gain", "goal": "at least 1.5x", "measured": "1.2x", "met": False}
    assert written["machine"]["cores"] >= 1
    assert written["versions"]["torch"] != "absent"


def test_met_goals_are_exit_code_0() -> None:
    assert finish(Measurement("m", [], [Goal("a", "b", "c", True)]), None) == 0


def test_sides_take_turns_and_the_first_one_changes() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = interleaved({"a": lambda: side("a"), "b": lambda: side("b")}, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert found == {"a": [1, 4, 5], "b": [2, 3, 6]}
    assert median(found["a"]) == 4


def test_a_table_is_aligned() -> None:
    lines = table([{"name": "a", "seconds": 2.0}, {"name": "longer", "seconds": 12345.0}]).splitlines()
    assert lines == ["name    seconds", "------  -------", "a             2", "longer   12,345"]
