"""`plan` on the tiny model: a real probe, and what it leaves behind."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

import sweeper
from sweeper.sweep.plan import Outlook, plan
from sweeper.sweep.query import find, status
from tests.support.cli import sweeper_command
from tests.support.specs import tiny_spec

ONE = {"kind": "local", "slots": 1}


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, sentences_csv: Path) -> tuple[Path, Path, dict]:
    """A spec that was planned by the command line, its home, and what was printed as JSON."""
    folder = tmp_path_factory.mktemp("planned")
    spec = folder / "spec.yaml"
    given = tiny_spec(model_folder, sentences_csv, executor=ONE, search={"trials": 5, "budget": {"price": 2.0}}, tracking=[])
    spec.write_text(yaml.safe_dump(given))
    ran = sweeper_command("plan", spec, "--home", folder / "home", "--json", "--seconds", 3)
    assert ran.code == 0, ran.err
    return spec, folder / "home", json.loads(ran.out)


def test_the_probe_measures_both_ends_of_the_space(planned: tuple[Path, Path, dict]) -> None:
    _, _, found = planned
    stretches = {one["what"]: one for one in found["probe"]["stretches"]}
    assert {what: one["batch"] for what, one in stretches.items()} == {"default": 8, "smallest batch": 4, "largest batch": 16}
    small, usual, large = (
        stretches[what]["tokens"] / stretches[what]["passes"] for what in ("smallest batch", "default", "largest batch")
    )
    assert 1.5 < usual / small < 2.5
    assert 1.5 < large / usual < 2.5
    assert all(one["train_seconds"] > 0 and one["read_seconds"] > 0 and one["rows"] > 0 for one in found["probe"]["stretches"])
    assert found["memory"]["engine"] > 50e6
    assert found["memory"]["part"] > found["memory"]["engine"]
    assert "has room for" in found["memory"]["fits"]


def test_the_forecast_counts_trials_hours_and_money(planned: tuple[Path, Path, dict]) -> None:
    _, _, found = planned
    assert found["started"] == {"low": 5, "mid": 5, "high": 5}
    assert 2 <= found["complete"]["mid"] <= 5
    assert 0 < found["seconds"]["low"] < found["seconds"]["mid"] < found["seconds"]["high"]
    assert found["device"] == "core"
    assert found["money"]["mid"] == pytest.approx(2 * found["device_hours"]["mid"])
    assert (found["engines"], found["slots"]) == (1, 1)


def test_planning_writes_nothing_to_the_study(planned: tuple[Path, Path, dict]) -> None:
    _, home, _ = planned
    assert not (home / "study.db").exists()
    assert not list(home.glob("checkpoints/*"))


def test_a_person_reads_the_same(planned: tuple[Path, Path, dict]) -> None:
    spec, home, _ = planned
    ran = sweeper_command("plan", spec, "--home", home, "--seconds", 1, "--price", 9, "--workers", 3)
    assert ran.code == 0, ran.err
    said = " ".join(ran.out.split())
    assert "tiny on 3 engines (local), one trial each" in said
    assert "5 started in all" in said
    assert re.search(r"time \S+ \(80 %: \S+ - \S+\); it would end at \d\d:\d\d", said)
    assert "at 9 a core-hour" in said
    assert "nobody knows the learning curves to come" in said


def test_a_sweep_is_held_against_its_forecast(planned: tuple[Path, Path, dict]) -> None:
    spec, home, _ = planned
    ran = sweeper_command("run", spec, "--home", home)
    assert ran.code == 0, ran.out + ran.err
    line = r"forecast \S+ \(80 %: \S+ - \S+\), took \d+m?\d*s"
    assert re.search(line, ran.out)
    assert re.search(line, sweeper_command("status", "--home", home).out)
    again = sweeper.run(spec, home=home)
    assert again.expected is not None
    assert again.expected.source == "probe"
    assert again.expected.after < 2
    assert again.expected.took is not None
    assert status(find("tiny", home=home)).expected == again.expected


def test_a_study_with_trials_is_forecast_from_its_own(planned: tuple[Path, Path, dict]) -> None:
    spec, home, _ = planned
    sweeper.run(spec, home=home)
    rest: Outlook = plan(spec, home=home, overrides=["search.trials=9"])
    assert rest.probe is None
    assert rest.history.ended == 5
    assert rest.forecast.started.mid == 9
    ended = rest.forecast.complete.mid + rest.forecast.pruned.mid
    assert ended == pytest.approx(4, abs=1)
    nothing: Outlook = plan(spec, home=home)
    assert nothing.forecast.device_hours.high == 0
    more = sweeper.run(spec, home=home, overrides=["search.trials=6"])
    assert more.expected is not None
    assert more.expected.source == "study"


def test_a_spec_that_is_wrong_is_told_as_by_run(planned: tuple[Path, Path, dict]) -> None:
    spec, home, _ = planned
    ran = sweeper_command("plan", spec, "--home", home, "--set", "search.budget.money=3", "--set", "search.budget.price=null")
    assert ran.code == 2
    assert "search.budget.price" in ran.err
    assert "Traceback" not in ran.err
