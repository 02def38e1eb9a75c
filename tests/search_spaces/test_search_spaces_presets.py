"""Every preset that ships is a whole, sound spec; it opens with purpose, cost and a command that really is its own."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sweeper.spec.identity import to_yaml
from sweeper.spec.load import load_spec

ROOT = Path(__file__).resolve().parents[2]
PRESETS = sorted((ROOT / "search_spaces").glob("*.yaml"))
NAMES = [path.stem for path in PRESETS]


def commands(path: Path) -> list[list[str]]:
    lines = re.findall(r"^#\s+(?:Run:\s+)?(sweeper run .*|make demo)\b.*$", path.read_text(), re.MULTILINE)
    return [shlex.split(line) for line in lines]


def test_there_are_at_least_six_and_none_in_hiding() -> None:
    assert len(PRESETS) >= 6
    assert list((ROOT / "search_spaces").rglob("*.yml")) == []


@pytest.mark.parametrize("path", PRESETS, ids=NAMES)
def test_a_preset_is_sound_and_named_like_its_file(path: Path) -> None:
    spec = load_spec(path)
    assert spec.name == path.stem.replace("_", "-")
    assert spec.space


@pytest.mark.parametrize("path", PRESETS, ids=NAMES)
def test_a_preset_opens_with_purpose_cost_and_command(path: Path) -> None:
    head = list(path.read_text().split("\n\n")[0].splitlines())
    assert all(line.startswith("#") for line in head)
    assert head[0].startswith("# Purpose: ")
    assert sum(line.startswith("# Cost: ") for line in head) == 1
    assert sum(line.startswith("# Run: ") for line in head) == 1


@pytest.mark.parametrize("path", PRESETS, ids=NAMES)
def test_the_command_in_the_head_loads_this_preset(path: Path) -> None:
    own = [command for command in commands(path) if command[0] == "sweeper"]
    assert own
    for command in own:
        assert command[2] == f"search_spaces/{path.name}"
        overrides = [command[index + 1] for index, word in enumerate(command) if word == "--set"]
        spec = load_spec(ROOT / command[2], overrides)
        assert all(value.partition("=")[2] in to_yaml(spec) for value in overrides)


@pytest.mark.parametrize("path", PRESETS, ids=NAMES)
def test_a_preset_can_be_cut_down_to_a_few_steps(path: Path) -> None:
    few = [
        "training.examples=32",
        "search.trials=2",
        "executor.kind=local",
        "model.name=folder",
        "search.rungs=[0.5]",
        "tracking=[]",
    ]
    source = ["data.hub=null", "data.path=rows.csv"]
    spec = load_spec(path, [*few, *source])
    assert (spec.training.examples, spec.search.trials, spec.model.name, spec.data.path) == (32, 2, "folder", "rows.csv")


def test_the_demo_is_the_job_it_promises() -> None:
    spec = load_spec(ROOT / "search_spaces" / "demo.yaml")
    assert {"learning_rate", "batch_size", "weight_decay", "dropout"} <= set(spec.space)
    assert (spec.search.trials or 0) >= 12
    assert (spec.search.sampler, spec.search.startup_trials) == ("tpe", 4)
    assert spec.search.pruner != "none"
    assert 19_459 * spec.data.split.test > 2_200, "at least 2,000 rows stay sealed as test, whatever the hashes give"
    assert spec.executor.kind == "auto", "packed, as every LoRA sweep"
    assert [tracker.kind for tracker in spec.tracking] == ["mlflow"]


def test_every_sampler_is_shown_by_some_preset_or_is_the_default() -> None:
    shown = {load_spec(path).search.sampler for path in PRESETS}
    assert {"tpe", "grid", "random", "gp"} <= shown
