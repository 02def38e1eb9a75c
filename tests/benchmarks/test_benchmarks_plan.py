"""The benchmark of forecasts runs on a tiny sweep; its goal is right on rows made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import plan
from sweeper.spec.load import load_spec


def test_a_sweep_is_planned_and_held_against_its_truth(make_spec: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    spec, keep, out = tmp_path / "tiny.yaml", tmp_path / "kept.jsonl", tmp_path / "out.json"
    spec.write_text(yaml.safe_dump(make_spec(tracking=[], search={"trials": 3})))
    assert plan.main(["--spec", str(spec), "--quick", "--keep", str(keep), "--json", str(out)]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["trials"] == 3
    assert 0 < row["low"] <= row["mid"] <= row["high"]
    assert row["took"] > 0
    assert row["inside"] == (row["low"] <= row["took"] <= row["high"])
    assert [json.loads(line) for line in keep.read_text().splitlines()] == [row]


@pytest.mark.parametrize(("inside", "met"), [(7, True), (6, False)])
def test_seven_of_ten_intervals_must_hold(inside: int, met: bool) -> None:
    rows = [{"inside": i < inside, "low": 8.0, "mid": 10.0, "high": 12.0} for i in range(10)]
    found = plan.goal(rows)
    assert found.met is met
    assert found.measured == f"{inside} of 10 (mean width 40% of the median)"


def test_every_sweep_is_a_sound_spec_of_its_own() -> None:
    demo = Path(__file__).parents[2] / "search_spaces" / "demo.yaml"
    seen = set()
    for changes in plan.SWEEPS:
        overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
        seen.add(load_spec(demo, overrides).model_dump_json())
    assert len(seen) == len(plan.SWEEPS) == 10


def test_a_spec_that_is_not_there_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["--spec", str(tmp_path / "none.yaml"), "--quick"]) == 2
    assert "benchmarks.plan:" in capsys.readouterr().err
