"""A sweep with adapters on the last layer of a base stored as nf4: what a user finds afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sweeper
from sweeper.spec.identity import identity


def test_a_sweep_on_the_last_layer_of_a_stored_base(make_spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    training = {"rank": 4, "learning_rate": 0.002, "dtype": "fp32", "layers": "last 1", "base": "nf4"}
    spec = make_spec(training=training, search={"trials": 2, "rungs": []}, tracking=[])
    result = sweeper.run(spec, home=tmp_path / "home")
    config = json.loads((Path(str(result.adapter)) / "adapter_config.json").read_text())
    depth = json.loads((Path(spec["model"]) / "config.json").read_text())["num_hidden_layers"]
    assert config["layers_to_transform"] == [depth - 1]
    assert list((tmp_path / "cache" / "prefix").glob("*/states.bin")), "nothing was kept of the frozen layers"

    place = sweeper.find(home=tmp_path / "home")
    assert sweeper.predict_text(place, "the film was lovely").answer in ("positive", "negative")
    with pytest.raises(sweeper.UserError, match=r'training.layers was "last 1" and is absent'):
        sweeper.run(make_spec(training={**training, "layers": "all"}, search={"trials": 2, "rungs": []}), home=tmp_path / "home")


def test_a_study_without_the_key_keeps_its_identity(make_spec) -> None:
    plain, said = (sweeper.load_spec(make_spec(training=t)) for t in ({}, {"layers": "all"}))
    assert identity(plain, "d", "m").hash == identity(said, "d", "m").hash
