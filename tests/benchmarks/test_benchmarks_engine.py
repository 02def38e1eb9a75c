"""The engine's benchmarks run whole on a tiny model, without Optuna and Ray, and both sides train the same rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common import numbers
from benchmarks.memory import _continued
from benchmarks.packing import bounds
from benchmarks.workload import MemoryDepot, Workload, draw_model

ROOT = Path(__file__).parents[2]
WITHOUT = """
import sys

sys.modules.update(dict.fromkeys(("optuna", "ray", "sqlalchemy", "mlflow")))  # importing one of them now raises
"""


def run(folder: Path, *arguments: str) -> tuple[dict[str, object], str]:
    """A benchmark in a process where neither Optuna nor Ray can be imported: its JSON and what it printed."""
    out = folder / "out.json"
    (folder / "sitecustomize.py").write_text(WITHOUT)  # so in every process that the benchmark starts
    done = subprocess.run(
        [sys.executable, "-m", *arguments, "--json", str(out)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])},
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text()), done.stdout


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    folder = tmp_path_factory.mktemp("workload")
    return Workload(str(draw_model(folder / "model", "tiny")), "fp32", "cpu", rank=4, dropout=0.0, folder=folder)


def test_what_is_blocked_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", "import optuna"], capture_output=True, text=True, env=environment, check=False)
    assert "ModuleNotFoundError" in done.stderr


def test_packing_without_optuna_and_ray(tmp_path: Path) -> None:
    found, printed = run(tmp_path, "benchmarks.packing", "--quick", "--tokens", "16")
    rows = found["rows"]
    assert isinstance(rows, list)
    assert {(row["part"], row["tokens"], row["K"]) for row in rows} >= {("train", 16, 1), ("train", 16, 4), ("evaluate", 16, 4)}
    assert all(row["packed_rate"] > 0 and row["peft_rate"] > 0 and row["low"] <= row["high"] for row in rows)
    assert "train 16 tokens, K 4" in printed


def test_limit_counts_the_work_that_was_done(tmp_path: Path) -> None:
    found, _ = run(tmp_path, "benchmarks.limit", "--quick")
    rows = found["rows"]
    assert isinstance(rows, list)
    (row,) = rows
    from benchmarks.limit import BATCHES, EVERY, LABELS, TARGETS, VALIDATION, demo_lengths

    assert row["trained_tokens"] == len(BATCHES) * sum(demo_lengths(EVERY))
    once = sum(demo_lengths(VALIDATION)) - VALIDATION * TARGETS + VALIDATION * sum(len(label) - 1 for label in LABELS)
    assert row["read_tokens"] == len(BATCHES) * once
    assert row["ratio"] > 1
    assert 0 < row["train_share"] < 1


def test_memory_of_an_engine_and_of_processes(tmp_path: Path, work: Workload) -> None:
    found, _ = run(tmp_path, "benchmarks.memory", "--quick", "--model", work.model)
    rows = found["rows"]
    assert isinstance(rows, list)
    (row,) = rows
    assert (row["K"], row["peft"]) == (2, "measured")
    assert row["packed_mb"] < row["peft_mb"]


def test_processes_that_would_not_fit_are_continued_on_the_line() -> None:
    assert _continued({1: (10.0, True), 2: (18.0, True)}, 8) == 18 + 6 * 8
    assert _continued({1: (10.0, True)}, 4) == 40


def test_both_sides_of_packing_lower_the_same_loss(work: Workload) -> None:
    """One step of either on the same batch gives the same gradient norm, so the same work is timed."""
    import torch

    from benchmarks.sides import Sequential
    from sweeper.data.tokens import TokenSet
    from sweeper.engine.lora_net import LoraNet
    from sweeper.engine.packed import Chunk
    from sweeper.engine.params import read_params

    torch.set_num_threads(1)
    train = work.rows("one", [12] * 4)
    plain = Sequential(work, train, train, threads=1)
    net = LoraNet(work.setup(train, train, slots=1, threads=1))
    row = net.place(0, read_params(work.trial(0, 4).params), seed=0)
    rows = [TokenSet(train).row(i) for i in range(4)]
    loss = sum(net.train([Chunk(0, rows, weight=1 / 8, smoothing=0.0, seed=0)]))
    ids, labels = plain._batch(TokenSet(train), range(4))
    with torch.no_grad():
        assert plain._model(input_ids=ids, labels=labels).loss.item() == pytest.approx(loss, rel=1e-5)
    assert row.weights.numel() == sum(p.numel() for p in plain._trained)


def test_only_whole_steps_count(work: Workload) -> None:
    from benchmarks.sides import Packed

    train = work.rows("many", [16] * 64)
    packed = Packed(work, train, work.rows("few", [16] * 8), slots=3, threads=1)
    done = packed.train(3, batch=2, seconds=0.05)
    assert done.steps == int(done.steps)
    assert done.steps >= 6
    read = packed.evaluate(2)
    assert read.steps == 16
    assert read.rate > 0
    packed.close()


def test_a_lower_bound_is_below_the_mean_and_certain_where_all_agree() -> None:
    low, high = bounds([1.0, 2.0, 4.0])
    assert 1.0 <= low < 2.0 < high <= 4.0
    assert bounds([1.5, 1.5]) == pytest.approx((1.5, 1.5))


def test_lists_of_numbers() -> None:
    assert numbers("1,2,16") == [1, 2, 16]
    with pytest.raises(Exception, match="not a list of numbers"):
        numbers("1,x")


def test_the_depot_of_a_measurement_keeps_nothing() -> None:
    depot = MemoryDepot()
    assert depot.put("a", {"b": b"c"}) == "a"
    with pytest.raises(FileNotFoundError):
        depot.get("a")
