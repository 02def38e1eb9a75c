"""Columns, templates and classes that cannot be used: one sentence each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from data_helpers import make_tokenizer, reviews
from tokenizers import normalizers

from sweeper.data.build import Bundle
from sweeper.errors import DataError

Built = Callable[..., Bundle]
PARTS = {"by": "column", "column": "side"}


def sided(train: list[str | None], validation: list[str | None], test: list[str | None] | None = None) -> list[dict[str, Any]]:
    """One row for each label given, on the side given."""
    sides = {"train": train, "validation": validation, "test": test or []}
    return [
        {"text": f"{side} {i}", "label": label, "side": side} for side, labels in sides.items() for i, label in enumerate(labels)
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"columns": {"text": "txet"}}, r"data.columns.text is 'txet', .* did you mean 'text'\?"),
        ({"columns": {"label": "lable"}}, r"data.columns.label is 'lable', .* did you mean 'label'\?"),
        ({"template": "{texts} is"}, r"names the column 'texts', .* did you mean 'text'\?"),
        ({"template": "{text is"}, "lone '{' at character 1"),
        ({"template": "same for all"}, "names no column"),
        ({"template": "{text} {label}"}, "shows 'label', the answer"),
        ({"task": "instruct"}, "task instruct needs a prompt column"),
        ({"task": "instruct", "template": "{text}"}, "task instruct needs a completion column"),
        ({"task": "chat"}, "needs a messages column"),
        (
            {"labels": ["positive"]},
            "data.labels has only 'positive', but classify needs at least two; found are: negative, positive",
        ),
        ({"labels": ["positive", "negativ"]}, r"is 'negative' in 3\d rows .* did you mean 'negativ'\?"),
        ({"labels": {"positive": "yes", "negative": " "}}, "empty answer"),
        ({"labels": ["positive", "negative", "positive"]}, "lists 'positive' twice"),
        ({"labels": ["positive", "negative", "neutral"]}, "no training row has the label 'neutral'"),
        (
            {"split": {"by": "column", "column": "label", "names": {"tests": ["positive"]}}},
            r"the side 'tests'; did you mean 'test'\?",
        ),
    ],
)
def test_a_spec_that_does_not_fit_its_data_gets_one_sentence(built: Built, data: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        built(reviews(70), **data)
    assert "\n" not in str(caught.value)


def test_a_template_may_use_a_roles_name_for_its_column(built: Built) -> None:
    rows = [{"sentence": row["text"], "label": row["label"]} for row in reviews(60)]
    assert built(rows, columns={"text": "sentence"}, template="Review: {text}\nSentiment:").counts["source"] == 60


def test_braces_in_a_column_name_do_no_harm(built: Built) -> None:
    rows = [{"a{b}": row["text"], "label": row["label"]} for row in reviews(60)]
    assert built(rows, columns={"text": "a{b}"}).counts["source"] == 60


def test_one_class_only_is_refused(built: Built) -> None:
    with pytest.raises(DataError, match="all rows have the label 'positive', but classify needs at least two"):
        built([row | {"label": "positive"} for row in reviews(40)])


def test_a_class_that_only_validation_has_is_refused(built: Built) -> None:
    with pytest.raises(DataError, match="no training row has the label 'c', though 2 validation rows have it"):
        built(sided(["a", "b"] * 5, ["a", "c", "c"]), split=PARTS)


def test_a_class_that_only_sealed_rows_have_is_refused_without_naming_it(built: Built) -> None:
    with pytest.raises(DataError, match="the test rows hold a value of the label column 'label'") as caught:
        built(sided(["a", "b"] * 5, ["a", "b"], ["a", "secret"]), split=PARTS)
    assert "secret" not in str(caught.value)


def test_a_limit_that_leaves_a_class_out_is_named(built: Built) -> None:
    with pytest.raises(DataError, match=r"raise data\.limit\.train"):
        built(sided(["a", "b"] * 5, ["a", "b"]), split=PARTS, limit={"train": 1})


def test_a_limit_is_not_blamed_for_a_class_that_training_never_has(built: Built) -> None:
    with pytest.raises(
        DataError, match="no training row has the label 'c', though 2 validation rows have it; add rows of it"
    ) as caught:
        built(sided(["a", "b"] * 20, ["a", "c", "c"]), split=PARTS, limit={"train": 30})
    assert "data.limit" not in str(caught.value)


def test_a_class_of_which_all_training_rows_were_dropped_is_named(built: Built) -> None:
    rows = sided(["a", "b"] * 10, ["a", "b"])
    rows += [{"text": "the film was good " * 30 + str(i), "label": "c", "side": "train"} for i in range(3)]
    with pytest.raises(DataError, match=r"all 3 training rows with the label 'c' were dropped, .* data\.too_long"):
        built(rows, split=PARTS, too_long="drop", max_length=48)


def test_free_text_as_labels_is_refused(built: Built) -> None:
    with pytest.raises(DataError, match=r"60 different values in 60 rows, which are no classes; .* task: instruct"):
        built(sided([f"label {i}" for i in range(50)], [f"label {i}" for i in range(50, 60)]), split=PARTS)


def test_mostly_missing_labels_are_refused_and_none_at_all_too(built: Built) -> None:
    with pytest.raises(DataError, match="30 of 34 rows have no label"):
        built(sided(["a", "b", *[None] * 30], ["a", "b"]), split=PARTS)
    with pytest.raises(DataError, match="the label column 'label' is empty in every row"):
        built(sided([None, ""], [None]), split=PARTS)


def test_labels_with_the_same_tokens_are_refused(built: Built) -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(DataError, match="two labels have the same tokens"):
        built(sided(["Yes", "yes"] * 5, ["Yes", "yes"]), split=PARTS, with_tokenizer=tokenizer)


def test_rare_and_unseen_classes_are_told(built: Built) -> None:
    bundle = built(sided(["a", "b"] * 10 + ["c"], ["a", "b"], ["a"]), split=PARTS)
    assert bundle.notices == (
        "the class 'c' has only 1 training row",
        "the class 'c' has no validation row, so validation says nothing about it",
    )
    assert bundle.class_counts == {"train": {"a": 10, "b": 10, "c": 1}, "validation": {"a": 1, "b": 1, "c": 0}}


def test_numbers_and_truth_values_are_labels(built: Built) -> None:
    assert built([row | {"label": i % 2 == 0} for i, row in enumerate(reviews(60))]).labels == ("false", "true")
    assert built([row | {"label": float(i % 2)} for i, row in enumerate(reviews(60))]).labels == ("0", "1")
