"""The same study is known again, another one is told apart with what differs, and no secret is written down."""

from __future__ import annotations

import json

import pytest

from sweeper.spec.identity import differences, document, identity, to_yaml
from sweeper.spec.load import load_spec
from sweeper.spec.mask import mask

SPEC = {
    "schema": 1,
    "name": "try",
    "model": "some/model",
    "data": {"path": "rows.csv", "task": "instruct"},
    "space": {"learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}, "rank": [4, 8]},
}


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "model=/elsewhere/model",
        "data.path=elsewhere.csv",
        "search.trials=99",
        "search.sampler=random",
        "search.pruner=none",
        "search.time=1h",
        "search.budget={gpu_hours: 3}",
        "executor.kind=local",
        "tracking=[]",
        "storage=sqlite:///other.db",
        "objective.metric=loss",
        "training.learning_rate=2e-4",
    ],
)
def test_what_may_change_between_runs(override: str) -> None:
    assert identity(load_spec(SPEC, [override]), "d", "m").hash == identity(load_spec(SPEC), "d", "m").hash


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("training.rank=4", "training.rank was 8 and is 4"),
        ("training.learning_rate=1e-3", "training.learning_rate was 0.0002 and is 0.001"),
        ("training.layers=last 2", 'training.layers was absent and is "last 2"'),
        ("space.learning_rate.low=1e-6", "space.learning_rate.low was 1e-05 and is 1e-06"),
        ("space.rank=null", 'space.rank.type was "values" and is absent'),
        ("search.seed=1", "seed was 0 and is 1"),
        ("data.limit.train=100", "data.limit.train was null and is 100"),
        ("evaluate.every=32", "evaluate.every was null and is 32"),
        ("evaluate.share=0.5", "evaluate.share was 0.2 and is 0.5"),
        ("evaluate.rows=64", "evaluate.rows was null and is 64"),
        ("search.rungs=[0.1, 0.3]", "evaluate.rungs was [0.1] and is [0.1,0.3]"),
        ("objective.at=best", 'objective.at was "last" and is "best"'),
        ("objective.metric=chrf", 'objective.metric was ["loss"] and is ["chrf"]'),
    ],
)
def test_what_makes_another_study(override: str, difference: str) -> None:
    before, now = identity(load_spec(SPEC), "d", "m"), identity(load_spec(SPEC, [override]), "d", "m")
    assert before.hash != now.hash
    assert difference in differences(json.loads(json.dumps(before.parts)), now.parts)


def test_data_and_model_count_by_their_content() -> None:
    spec = load_spec(SPEC)
    assert len({identity(spec, data, model).hash for data in "ab" for model in "ab"}) == 4
    assert differences(identity(spec, "a", "m").parts, identity(spec, "b", "m").parts) == ['data.fingerprint was "a" and is "b"']


def test_resolved_settings_count_where_they_are_given() -> None:
    spec = load_spec(SPEC)
    resolved = spec.training.model_copy(update={"dtype": "bf16"})
    assert identity(spec, "d", "m", resolved).hash != identity(spec, "d", "m").hash


def test_a_key_that_older_studies_lack_leaves_their_identity_as_it_was() -> None:
    assert "layers" not in identity(load_spec(SPEC, ["training.layers=all"]), "d", "m").parts["training"]


def test_the_order_of_keys_is_no_difference() -> None:
    turned = {**SPEC, "space": dict(reversed(SPEC["space"].items()))}  # type: ignore[attr-defined]
    assert identity(load_spec(turned), "d", "m").hash == identity(load_spec(SPEC), "d", "m").hash


@pytest.mark.parametrize(
    ("secret", "shown"),
    [
        ("postgresql+psycopg://me:hunter2@host:5432/db", "postgresql+psycopg://me:***@host:5432/db"),
        ("postgresql://me:hunter2@home@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:hun/ter2@host/db", "postgresql://me:***@host/db"),
        ("https://:hunter2@host/", "https://:***@host/"),
        ("s3://bucket/x?access_key=hunter2&region=eu", "s3://bucket/x?access_key=***&region=eu"),
        ("https://host/x?a=1&sig=hunter2", "https://host/x?a=1&sig=***"),
        ("could not reach postgresql://me:hunter2@host/db today", "could not reach postgresql://me:***@host/db today"),
        ("sqlite:///study.db", "sqlite:///study.db"),
        ("http://localhost:5000/a?b=c", "http://localhost:5000/a?b=c"),
        ("postgresql://host:5432/db", "postgresql://host:5432/db"),
    ],
)
def test_secrets_in_text_are_masked(secret: str, shown: str) -> None:
    assert mask(secret) == shown


def test_secrets_under_telling_names_are_masked_and_numbers_stay() -> None:
    masked = mask(
        {"api_key": "x", "nested": [{"HF_TOKEN": "y"}], "password": "", "chunk_tokens": 64, "max_new_tokens": 8, "monkey": "z"}
    )
    assert masked == {
        "api_key": "***",
        "nested": [{"HF_TOKEN": "***"}],
        "password": "",
        "chunk_tokens": 64,
        "max_new_tokens": 8,
        "monkey": "z",
    }


def test_a_stored_spec_holds_no_secret() -> None:
    spec = load_spec(
        SPEC, ["storage=postgresql://me:hunter2@here/db", "tracking.0.uri=https://u:hunter2@host", "groups.token=hunter2"]
    )
    assert "hunter2" not in json.dumps(document(spec)) + to_yaml(spec)
    assert spec.storage == "postgresql://me:hunter2@here/db", "masking makes a copy"
    assert document(spec)["schema"] == 1
