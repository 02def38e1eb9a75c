"""A good spec means what its author wrote: numbers, words, lines, overrides, variables and short forms."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.errors import SpecError
from sweeper.spec import load
from sweeper.spec.checks import check, resolve
from sweeper.spec.identity import to_yaml
from sweeper.spec.load import load_spec
from sweeper.spec.models import SweepSpec
from sweeper.spec.space import FloatDimension, IntDimension, ValuesDimension, contains
from sweeper.spec.yaml_text import read_yaml, write_yaml

TEXT = """\
schema: 1
name: try
model: some/model
data:
  path: rows.csv
  task: classify
  labels: [no, yes, 0]
  template: "Price ${x}, {text}:"
training: {learning_rate: 1e-4, epochs: 2}
space:
  learning_rate: {low: 1e-5, high: 1e-3, log: true}
  epochs: {low: 1, high: 3}
  batch_size: {low: 4, high: 32}
  schedule: [linear, cosine]
  warmup: {low: 0, high: 0.2, when: {schedule: [cosine]}}
search: {time: 30m}
tracking: mlflow
"""


def test_values_are_what_people_mean_by_them() -> None:
    spec = load_spec(TEXT)
    assert spec.training.learning_rate == 1e-4
    assert spec.data.labels == ["no", "yes", "0"]
    assert spec.data.template == "Price ${x}, {text}:"
    assert spec.search.time == 1800
    assert spec.model.name == "some/model"
    assert [tracker.kind for tracker in spec.tracking] == ["mlflow"]


def test_shapes_of_dimensions() -> None:
    space = load_spec(TEXT).space
    assert space["learning_rate"] == FloatDimension(type="float", low=1e-5, high=1e-3, log=True)
    assert space["epochs"] == FloatDimension(type="float", low=1, high=3), "whole bounds of a real key are a real interval"
    assert space["batch_size"] == IntDimension(type="int", low=4, high=32)
    assert space["schedule"] == ValuesDimension(values=["linear", "cosine"])
    assert space["warmup"].when == {"schedule": ["cosine"]}


def test_a_path_and_its_text_and_its_values_load_alike(tmp_path: Path) -> None:
    path = tmp_path / "try.yaml"
    path.write_text(TEXT, encoding="utf-8-sig")
    values, _ = read_yaml(TEXT)
    assert load_spec(path) == load_spec(str(path)) == load_spec(TEXT) == load_spec(values)
    assert values["tracking"] == "mlflow", "the caller's values are not changed"


def test_keys_of_plain_values_that_are_no_text_are_mistakes_as_in_a_file() -> None:
    values: dict[object, object] = {"name": "a", "model": {"name": "m"}, "data": {1: 2}, 3: {4: [{5: 6}]}}
    with pytest.raises(SpecError) as error:
        load_spec(values)  # type: ignore[arg-type]
    assert {"data.1", "3"} <= {problem.path for problem in error.value.problems}


def test_overrides_change_keys_before_checks() -> None:
    spec = load_spec(
        TEXT,
        [
            "training.rank=4",
            "space.learning_rate.low=1e-6",
            "space.dropout={low: 0, high: 0.3}",
            "space.warmup=null",
            "model.revision=main",
            "data.template=Review: {text}\\nSentiment:",
            "tracking.0.project=mine",
            "tracking.1.kind=tensorboard",
            "search.enqueue=[{batch_size: 8}]",
            "search.enqueue.0.epochs=2",
            "name='12'",
            "groups.domain=[film, news]",
        ],
    )
    assert spec.training.rank == 4
    assert spec.space["learning_rate"] == FloatDimension(type="float", low=1e-6, high=1e-3, log=True)
    assert "dropout" in spec.space
    assert "warmup" not in spec.space
    assert (spec.model.name, spec.model.revision) == ("some/model", "main")
    assert spec.data.template == "Review: {text}\\nSentiment:"
    assert [(tracker.kind, tracker.project) for tracker in spec.tracking] == [("mlflow", "mine"), ("tensorboard", None)]
    assert spec.search.enqueue == [{"batch_size": 8, "epochs": 2}]
    assert spec.name == "12"
    assert spec.groups == {"domain": ["film", "news"]}


def test_an_override_mends_a_mistake_in_the_file() -> None:
    with pytest.raises(SpecError):
        load_spec(TEXT.replace("epochs: 2", "epochs: many"))
    assert load_spec(TEXT.replace("epochs: 2", "epochs: many"), ["training.epochs=2"]) == load_spec(TEXT)


def test_environment_variables_fill_in_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_TEST_PASSWORD", "hunter2")
    spec = load_spec(
        TEXT + "storage: postgresql://me:${SWEEPER_TEST_PASSWORD}@here/db\n", ["executor.address=$${SWEEPER_TEST_PASSWORD}"]
    )
    assert spec.storage == "postgresql://me:hunter2@here/db"
    assert spec.executor.address == "${SWEEPER_TEST_PASSWORD}"


def test_older_schemas_are_migrated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "SCHEMA", 2)
    monkeypatch.setitem(load.MIGRATIONS, 1, lambda raw: {**raw, "name": raw["name"] + "-migrated"})
    _, migrated = load._migrated({"schema": 1, "name": "a"}, problems := []), problems
    assert migrated == []
    assert load._migrated({"schema": 1, "name": "a"}, []) == {"schema": 2, "name": "a-migrated"}


def test_auto_is_resolved_once_and_for_all() -> None:
    spec = load_spec(TEXT)
    assert (spec.objective.metric, spec.objective.direction) == (["accuracy"], ["maximize"])
    assert resolve(spec) == spec
    text = load_spec(TEXT, ["data.task=text", "data.labels=null", "data.template=null"])
    assert (text.objective.metric, text.objective.direction) == (["loss"], ["minimize"])
    several = load_spec(TEXT, ["objective.metric=[loss, 'my.metrics:f']", "objective.direction=[minimize, maximize]"])
    assert several.objective.direction == ["minimize", "maximize"]


def test_several_metrics_are_never_pruned_by_the_first_alone() -> None:
    spec = load_spec(TEXT, ["objective.metric=[accuracy, loss]", "search.trials=7"])
    assert (spec.search.pruner, spec.search.collapse.enabled, spec.search.trials) == ("none", False, 7)
    assert resolve(spec) == spec
    again = resolve(SweepSpec.model_validate(spec.model_dump(by_alias=True)))
    assert again == spec
    assert check(again) == []
    assert load_spec(to_yaml(spec)) == spec
    asked = load_spec(TEXT, ["objective.metric=[accuracy, loss]", "search.pruner=none", "search.collapse.margin=0.1"])
    assert (asked.search.pruner, asked.search.collapse.enabled, asked.search.collapse.margin) == ("none", False, 0.1)
    single = load_spec(TEXT, ["objective.metric=[accuracy]"])
    assert (single.search.pruner, single.search.collapse.enabled) == ("halving", True)


def test_a_spec_written_out_loads_again_unchanged() -> None:
    spec = load_spec(TEXT, ["storage=sqlite:///x.db", "data.labels={'0': no, '1': yes}", "executor.gpus=0.5"])
    assert load_spec(to_yaml(spec)) == spec


def test_a_spec_made_in_python_can_be_checked() -> None:
    good = load_spec(TEXT)
    assert check(good) == []
    wrong = good.model_copy(update={"objective": good.objective.model_copy(update={"metric": "lss"})})
    assert [problem.path for problem in check(wrong)] == ["objective.metric"]
    with pytest.raises(ValueError, match=r"whole number|integer"):
        SweepSpec.model_validate({**good.model_dump(by_alias=True), "training": {"batch_size": True}})


def test_aliases_and_merges_of_plain_yaml_work() -> None:
    value, lines = read_yaml("base: &b {x: 1, y: [yes, 1:30]}\nuse:\n  <<: *b\n  x: 2\n")
    assert value["use"] == {"x": 2, "y": ["yes", "1:30"]}
    assert lines[("use", "x")] == 4


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=8
)


@given(st.dictionaries(st.text(max_size=6), VALUES, max_size=4))
def test_what_is_written_is_read_back(value: dict[str, object]) -> None:
    again, _ = read_yaml(write_yaml(value))
    assert (again or {}) == value


@pytest.mark.parametrize(
    ("dimension", "inside", "outside"),
    [
        (FloatDimension(type="float", low=0, high=1, step=0.1), [0, 0.3, 0.7, 1], [0.05, 1.1, "0.1", None, True]),
        (FloatDimension(type="float", low=1e-5, high=1e-3, log=True), [1e-5, 3e-4], [1e-6, 1]),
        (IntDimension(type="int", low=1, high=9, step=4), [1, 5, 9], [2, 13, 1.5]),
        (ValuesDimension(values=["a", 1, None]), ["a", 1, None], ["b", True, 2]),
    ],
)
def test_what_a_dimension_can_take(
    dimension: FloatDimension | IntDimension | ValuesDimension, inside: list[object], outside: list[object]
) -> None:
    assert all(contains(dimension, value) for value in inside)  # type: ignore[arg-type]
    assert not any(contains(dimension, value) for value in outside)  # type: ignore[arg-type]
