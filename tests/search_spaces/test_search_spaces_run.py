"""Every preset that ships runs: two trials of a few steps each on a tiny model, with rows of the shape the preset asks for."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sweeper
from sweeper.records import TrialState
from sweeper.spec.load import load_spec
from sweeper.spec.models import SweepSpec
from tests.support.tiny import sentences, write_csv

PRESETS = sorted((Path(__file__).resolve().parents[2] / "search_spaces").glob("*.yaml"))


def rows_for(spec: SweepSpec, folder: Path) -> Path:
    """A data file that the preset could have been written for."""
    rows = sentences(200)
    columns = spec.data.columns
    if spec.data.task == "classify":
        names = (columns.text or "text", columns.label or "label")
        return write_csv(folder / "rows.csv", rows, extra=("film", "news"), columns=names)
    if spec.data.task == "text":
        pq.write_table(pa.table({columns.text or "text": [text for text, _ in rows]}), folder / "rows.parquet")
        return folder / "rows.parquet"
    path = folder / "rows.jsonl"
    with path.open("w") as file:
        for text, label in rows:
            turns = [{"role": "user", "content": text}, {"role": "assistant", "content": label}]
            record = {columns.messages or "messages": turns}
            if spec.data.task == "instruct":
                record = {columns.prompt or "prompt": text, columns.completion or "completion": label}
            file.write(json.dumps(record) + "\n")
    return path


@pytest.mark.parametrize("path", PRESETS, ids=[path.stem for path in PRESETS])
def test_a_preset_runs(path: Path, model_folder: Path, tmp_path: Path) -> None:
    rows = rows_for(load_spec(path), tmp_path)
    few: dict[str, object] = {
        "model.name": model_folder,
        "data.path": rows,
        "data.hub": "null",
        "data.labels": "null",
        "data.limit.train": 80,
        "data.limit.validation": 8,
        "training.examples": 32,
        "training.batch_size": 8,
        "training.max_length": 64,
        "evaluate.max_new_tokens": 4,
        "search.trials": 2,
        "executor.kind": "local",
        "tracking": "[]",
    }
    spec = load_spec(path)
    if "epochs" in spec.space:
        few["space.epochs"] = "null"
    result = sweeper.run(path, home=tmp_path / "home", overrides=[f"{key}={value}" for key, value in few.items()])
    assert len(result.trials) == 2
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in result.trials)
    assert result.best is not None
    assert result.adapter is not None
    assert result.adapter.is_dir()
