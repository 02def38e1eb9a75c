"""The yardstick runs whole on a tiny model, and trains the same rows, labels and steps that Sweeper's spec says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sweeper.spec.load import load_spec

ROOT = Path(__file__).parents[2]
SpecMaker = Callable[..., dict[str, Any]]


@pytest.fixture
def spec_file(make_spec: SpecMaker, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(make_spec()))
    return path


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.plain_tune", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False, timeout=240)


@pytest.mark.slow
def test_a_quick_sweep_ends_with_a_table_and_json(spec_file: Path, tmp_path: Path) -> None:
    done = run("--spec", str(spec_file), "--quick", "--arrangement", "1x1", "--json", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["name"] == "plain_tune"
    assert set(found) == {"name", "machine", "versions", "rows", "goals"}
    (row,) = found["rows"]
    assert (row["arrangement"], row["trials"], row["failed"], row["counts"]) == ("1x1", 3, 0, "yes")
    assert row["best"]["learning_rate"] > 0
    assert 0 <= row["best_accuracy"] <= 1
    assert row["evaluations"] >= 3
    assert row["train_seconds"] + row["evaluate_seconds"] <= row["seconds"]
    assert all(goal["met"] for goal in found["goals"])
    assert "met     trials that ended with an error: 0" in done.stdout


@pytest.mark.slow
def test_given_configurations_are_trained_whole_and_learn(spec_file: Path, tmp_path: Path) -> None:
    points = tmp_path / "points.json"
    points.write_text(json.dumps([{"learning_rate": 0.01, "batch_size": 8}, {"learning_rate": 1e-6, "batch_size": 4, "rank": 2}]))
    arguments = ["--spec", str(spec_file), "--quick", "--set", "objective.metric=loss", "--arrangement", "1x1"]
    done = run(*arguments, "--configurations", str(points), "--json", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr[-3000:]
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert (row["trials"], row["stopped"], row["failed"], row["examples"]) == (2, 0, 0, 2 * 48)
    assert row["best"]["learning_rate"] == 0.01


def test_a_worker_is_reused_and_reports_at_the_examples_of_the_clock(spec_file: Path, tmp_path: Path) -> None:
    from benchmarks.plain_trial import PlainSetup, PlainTrial
    from benchmarks.plain_tune import plain_setup

    torch.set_num_threads(1)
    shared = plain_setup(load_spec(spec_file, ["training.dtype=fp32"]), tmp_path / "home")

    class Direct(PlainTrial):
        def setup(self, config: dict[str, Any], setup: PlainSetup | None = None) -> None:
            super().setup(config, shared)

    def train(trial: PlainTrial) -> list[dict[str, Any]]:
        reports = [trial.step()]
        while not reports[-1]["done"]:
            reports.append(trial.step())
        return reports

    trial = Direct({"learning_rate": 0.01, "batch_size": 8})
    base = {name: value.clone() for name, value in trial._base.state_dict().items() if "lora" not in name}
    first = train(trial)
    clock = shared.plan.clock(96)[0]
    steps = {-(-nominal // 8): nominal for nominal in clock}  # several that fall on one step are one evaluation
    assert {report["optimizer_steps"]: report["nominal"] for report in first} == steps
    assert first[-1]["optimizer_steps"] == 12
    assert first[-1]["loss"] < first[0]["loss"] - 0.1
    assert trial.reset_config({"learning_rate": 1e-3, "batch_size": 4, "rank": 2})
    trial.step()  # stopped half-way
    assert trial.reset_config({"learning_rate": 0.01, "batch_size": 8})
    again = train(trial)
    assert [report["loss"] for report in again] == [report["loss"] for report in first]
    trial.cleanup()
    after = trial._base.state_dict()
    assert set(after) == {name.replace("base_layer.", "") for name in base}
    assert all(torch.equal(value, after[name.replace("base_layer.", "")]) for name, value in base.items())


def test_what_the_yardstick_cannot_do_is_one_sentence(make_spec: SpecMaker, tmp_path: Path) -> None:
    path = tmp_path / "f1.yaml"
    path.write_text(yaml.safe_dump(make_spec(objective={"metric": "macro_f1"})))
    done = run("--spec", str(path), "--quick")
    assert done.returncode == 2
    assert "objective.metric is 'macro_f1', but the yardstick measures accuracy or loss" in done.stderr
    assert "Traceback" not in done.stderr


def test_rows_are_the_token_sets_with_only_the_answer_to_predict(tmp_path: Path) -> None:
    import numpy as np
    import pyarrow as pa

    from benchmarks.plain_trial import IGNORED, Rows
    from sweeper.data.tokens import TokenInfo, TokenRow, write_token_set

    row = TokenRow(np.array([5, 6, 7, 8], np.int32), np.array([False, False, True, True]), prompt=2, label=0)
    info = TokenInfo("classify", 1, 4, 4, labels=("a",), label_ids=((7, 8),))
    write_token_set(tmp_path / "side", info, [row], pa.table({"row_id": ["r"], "reference": ["a"]}))
    assert list(Rows(tmp_path / "side")) == [
        {"input_ids": [5, 6, 7, 8], "attention_mask": [1, 1, 1, 1], "labels": [IGNORED, IGNORED, 7, 8]}
    ]


def test_classes_are_read_before_the_first_label_token() -> None:
    from benchmarks.plain_trial import IGNORED, FirstToken

    class Evaluated:
        label_ids = torch.tensor([[IGNORED, IGNORED, 3, 1], [IGNORED, 2, 1, IGNORED]]).numpy()

    scorer = FirstToken([(2, 1), (3, 1)])
    logits = torch.zeros(2, 4, 5)
    logits[0, 1, 3] = 1.0  # right: class 1 leads before position 2
    logits[0, 2, 2] = 9.0  # after the answer began: must not count
    logits[1, 0, 3] = 1.0  # wrong: class 1 leads, the row is of class 0
    scores = scorer.scores(logits, torch.tensor(Evaluated.label_ids))
    assert scores.tolist() == [[0.0, 1.0], [0.0, 1.0]]
    Evaluated.predictions = scores.numpy()
    assert scorer.accuracy(Evaluated) == {"accuracy": 0.5}


def test_labels_that_begin_alike_are_refused() -> None:
    from benchmarks.plain_trial import FirstToken
    from sweeper.errors import UserError

    with pytest.raises(UserError, match="begin with the same token"):
        FirstToken([(2, 1), (2, 3, 1)])
