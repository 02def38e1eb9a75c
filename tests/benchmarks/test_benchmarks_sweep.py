"""The benchmarks of control and of whole sweeps run on small sizes; their arithmetic is right on numbers made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import controller, makespan
from benchmarks.control_loss import Times, lost_share
from benchmarks.makespan import Run, line, loss_gap, wall_times
from benchmarks.render import BEGIN, END, placed

SpecMaker = Callable[..., dict[str, Any]]


def test_controller_times_its_calls(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert controller.main(["--quick", "--json", str(out)]) == 0
    by_what = {row["what"]: row for row in json.loads(out.read_text())["rows"]}
    assert by_what["10 trials"]["value"] > 0
    assert set(by_what["10 trials"]["calls_ms"]) >= {"ask", "report", "end"}
    assert by_what["ask at 30 finished"]["value"] > by_what["ask at 30 finished, random sampler"]["value"] > 0
    assert "driver's memory for a finished trial" in by_what


def test_makespan_runs_in_parts_and_shows_them_together(make_spec: SpecMaker, tmp_path: Path) -> None:
    spec, keep = tmp_path / "tiny.yaml", tmp_path / "runs.jsonl"
    spec.write_text(yaml.safe_dump(make_spec()))
    common = ["--spec", str(spec), "--quick", "--home", str(tmp_path / "home"), "--keep", str(keep)]
    assert makespan.main([*common, "--sides", "local:fp32", "--rows", "32"]) == 0
    (kept,) = [json.loads(text) for text in keep.read_text().splitlines()]
    assert set(kept["losses"]) == {"0", "1", "2", "3"}
    assert kept["train_seconds"] > 0
    keep.write_text("".join(json.dumps({**kept, **more}) + "\n" for more in ({"wall": 9.0}, {"rows": 64, "wall": 11.0})))
    assert makespan.main([*common, "--repeats", "0", "--json", str(tmp_path / "out.json")]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["rows"], row["start_seconds"]) for row in rows] == [(32, 7.0), (64, 7.0)]
    assert rows[0]["ms_a_row"] == pytest.approx(1e3 * 2 / (4 * 32))


def test_a_side_that_does_not_exist_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        makespan.main(["--sides", "plain:auto"])
    assert ended.value.code == 2
    assert "'plain:auto' is not a side; there are plain:fp32|bf16" in capsys.readouterr().err


def test_the_better_arrangement_of_the_yardstick_counts() -> None:
    runs = [
        Run("plain:fp32", 144, 30.0, 1, 1, "1x2"),
        Run("plain:fp32", 144, 20.0, 1, 1, "2x1"),
        Run("plain:fp32", 144, 26.0, 1, 1, "2x1"),
        Run("tune:fp32", 144, 10.0, 1, 1),
    ]
    assert wall_times(runs) == {"plain:fp32": {144: 23.0}, "tune:fp32": {144: 10.0}}


def test_start_up_and_time_per_row_are_told_apart() -> None:
    assert line({100: 12.0, 300: 16.0}, trials=2) == pytest.approx((10.0, 10.0))
    assert line({100: 12.0}, trials=2) is None


def test_losses_are_compared_at_the_same_rows() -> None:
    runs = [
        Run("packed:fp32", 144, 1, 1, 1, losses={"0": 1.0, "1": 2.002}),
        Run("tune:fp32", 144, 1, 1, 1, losses={"0": 1.0, "1": 2.0}),
        Run("tune:fp32", 432, 1, 1, 1, losses={"0": 5.0}),
    ]
    assert loss_gap(runs) == pytest.approx(1e-3)
    assert loss_gap(runs[1:]) is None


def test_control_that_costs_nothing_loses_nothing_and_a_slow_one_much() -> None:
    free = Times({0: 0.0}, 0.0, 0.0)
    assert lost_share(free, 50, 100.0, 5) == pytest.approx(0.0)
    # One driver that needs 1 s a trial serves 50 slots whose trials last 10 s: it is five times overloaded.
    assert lost_share(Times({0: 1.0}, 0.0, 0.0), 50, 10.0, 5) > 0.5
    light = lost_share(Times({0: 0.01}, 0.001, 0.001), 10, 100.0, 5)
    assert 0.0001 < light < 0.001


def test_an_ask_between_two_counts_lies_on_the_line() -> None:
    times = Times({100: 0.01, 300: 0.03}, 0.0, 0.0)
    assert [times.ask_at(n) for n in (0, 200, 900)] == pytest.approx([0.01, 0.02, 0.03])


def test_rendering_replaces_what_stands_between_the_marks() -> None:
    measured = {
        "machine": {"processor": "P", "cores": 2, "memory_gb": 8.0, "gpus": []},
        "versions": {"torch": "2", "transformers": "5", "ray": "absent"},
        "rows": [{"side": "a", "seconds": 2.0}],
        "goals": [{"what": "gain", "goal": "at least 2x", "measured": "1.5x", "met": False}],
    }
    text = placed(f"above\n{BEGIN}\nold\n{END}\nbelow", [measured], ["gain-cpu"])
    assert text.startswith("above\n")
    assert text.endswith("\nbelow")
    assert "old" not in text
    assert "### gain-cpu" in text
    assert "- **missed**: gain: 1.5x (goal: at least 2x)" in text
    assert placed(text, [measured], ["gain-cpu"]) == text


def test_the_readme_has_a_row_for_every_benchmark_and_one_place_for_tables() -> None:
    folder = Path(makespan.__file__).parent
    text = (folder / "README.md").read_text()
    commands = [file.stem for file in folder.glob("*.py") if "def main(" in file.read_text() and file.stem != "render"]
    assert [name for name in commands if f"| `python -m benchmarks.{name}" not in text] == []
    assert (text.count(BEGIN), text.count(END)) == (1, 1)
