"""Metrics agree with their definitions worked by hand, and a user's function fails in a sentence."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from sweeper.data.tokens import TokenInfo
from sweeper.engine.metrics import check_function, compute, needs_classes, needs_text
from sweeper.engine.outcomes import RowOutcomes
from sweeper.errors import TrialError, UserError
from sweeper.spec.metrics import METRICS

CLASSIFY = TokenInfo(task="classify", rows=4, tokens=40, longest=10, labels=("bad", "good", "mixed"))
INSTRUCT = TokenInfo(task="instruct", rows=2, tokens=20, longest=10)


def no_columns(name: str) -> list[object]:
    raise AssertionError(f"column {name} was read without need")


def classified(labels: list[int], predictions: list[int]) -> RowOutcomes:
    n = len(labels)
    return RowOutcomes(
        row_ids=[str(i) for i in range(n)],
        loss_sum=np.arange(1.0, n + 1),
        tokens=np.full(n, 2),
        labels=np.array(labels, np.int32),
        predictions=np.array(predictions, np.int32),
    )


def decoded(texts: list[str], references: list[str]) -> RowOutcomes:
    n = len(texts)
    return RowOutcomes(
        row_ids=[str(i) for i in range(n)],
        loss_sum=np.ones(n),
        tokens=np.ones(n, np.int64),
        labels=np.full(n, -1, np.int32),
        texts=texts,
        references=references,
    )


def one(name: str, rows: RowOutcomes, info: TokenInfo = CLASSIFY) -> float:
    return compute([name], rows, info, no_columns)[name]


def test_loss_weighs_tokens_not_rows() -> None:
    rows = RowOutcomes(["a", "b"], np.array([2.0, 30.0]), np.array([1, 9]), np.zeros(2, np.int32))
    values = compute(["loss", "perplexity"], rows, CLASSIFY, no_columns)
    assert values["loss"] == pytest.approx(3.2)
    assert values["perplexity"] == pytest.approx(math.exp(3.2))


def test_a_loss_that_is_not_a_number_stays_visible() -> None:
    rows = RowOutcomes(["a", "b"], np.array([math.nan, 1.0]), np.array([1, 1]), np.zeros(2, np.int32))
    assert math.isnan(one("loss", rows))
    assert math.isnan(one("perplexity", rows))


def test_a_huge_loss_gives_infinite_perplexity_not_an_error() -> None:
    rows = RowOutcomes(["a"], np.array([5000.0]), np.array([1]), np.zeros(1, np.int32))
    assert one("perplexity", rows) == math.inf


def test_accuracy_and_macro_f1_by_hand() -> None:
    rows = classified([0, 0, 0, 1], [0, 0, 1, 1])
    assert one("accuracy", rows) == pytest.approx(0.75)
    # class 0: precision 1, recall 2/3 -> 0.8; class 1: precision 1/2, recall 1 -> 2/3; class 2 never occurs
    assert one("macro_f1", rows) == pytest.approx((0.8 + 2 / 3) / 2)


def test_macro_f1_counts_a_class_that_was_only_predicted() -> None:
    assert one("macro_f1", classified([0, 0], [0, 2])) == pytest.approx((2 / 3 + 0) / 2)


def test_exact_match_ignores_outer_space_only() -> None:
    rows = decoded([" Paris\n", "paris", "New  York"], ["Paris", "Paris", "New York"])
    assert one("exact_match", rows, INSTRUCT) == pytest.approx(1 / 3)


def test_rouge_l_by_hand() -> None:
    # longest common subsequence "the cat mat": 3 of 4 words predicted, 3 of 6 in the reference
    rows = decoded(["the cat big mat"], ["the cat sat on the mat"])
    assert one("rouge_l", rows, INSTRUCT) == pytest.approx(2 * (3 / 4) * (3 / 6) / (3 / 4 + 3 / 6))


def test_text_metrics_lie_between_zero_and_one() -> None:
    same = decoded(["a whole sentence"], ["a whole sentence"])
    other = decoded(["xyz"], ["a whole sentence"])
    for name in ("exact_match", "rouge_l", "chrf"):
        assert one(name, same, INSTRUCT) == pytest.approx(1)
        assert one(name, other, INSTRUCT) == pytest.approx(0)


def test_every_metric_a_spec_may_name_can_be_computed() -> None:
    rows = RowOutcomes(
        ["a"], np.ones(1), np.ones(1, np.int64), np.zeros(1, np.int32),
        predictions=np.zeros(1, np.int32), texts=["x y"], references=["x y"],
    )  # fmt: skip
    values = compute(list(METRICS), rows, CLASSIFY, no_columns)
    assert set(values) == set(METRICS)
    assert all(math.isfinite(value) for value in values.values())


def test_an_unknown_metric_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="unknown metric 'f2'; there are loss, "):
        one("f2", classified([0], [0]))


@pytest.mark.parametrize(
    ("name", "task", "text", "classes"),
    [
        ("loss", "instruct", False, False),
        ("rouge_l", "instruct", True, False),
        ("m:f", "instruct", True, False),
        ("m:f", "classify", False, True),
        ("accuracy", "classify", False, True),
        ("loss", "classify", False, False),
    ],
)
def test_what_rows_must_be_read_for(name: str, task: str, text: bool, classes: bool) -> None:
    assert needs_text([name], task) is text
    assert needs_classes([name], task) is classes


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user_metrics_for_test.py").write_text(
        "def share(predictions, references, columns):\n"
        "    right = [p == r and d == 'tweets' for p, r, d in zip(predictions, references, columns['domain'])]\n"
        "    return sum(right) / len(right)\n"
        "def broken(predictions, references, columns):\n"
        "    return 1 / 0\n"
        "def wordy(predictions, references, columns):\n"
        "    return 'very good'\n"
        "def two(predictions, references):\n"
        "    return 1.0\n"
        "constant = 3\n"
    )
    (tmp_path / "user_metrics_needy.py").write_text("import a_package_nobody_has\n")
    (tmp_path / "user_metrics_torn.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("user_module")
def test_a_users_function_sees_label_words_and_columns() -> None:
    name = "user_metrics_for_test:share"
    columns: dict[str, list[object]] = {"domain": ["tweets", "news", "tweets", "tweets"]}
    check_function(name)
    values = compute([name], classified([0, 1, 2, 1], [0, 1, 2, 0]), CLASSIFY, lambda column: columns[column])
    assert values == {name: 0.5}


@pytest.mark.usefixtures("user_module")
def test_a_users_failing_function_is_the_trials_failure_in_a_sentence() -> None:
    with pytest.raises(TrialError, match="metric 'user_metrics_for_test:broken' failed with ZeroDivisionError: division by zero"):
        one("user_metrics_for_test:broken", classified([0], [0]))
    with pytest.raises(TrialError, match="returned 'very good', but must return a number"):
        one("user_metrics_for_test:wordy", classified([0], [0]))


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("user_metrics_for_test:shares", r"has no 'shares'; its functions: broken, share, two, wordy"),
        ("user_metrics_for_test:two", r"must be a function of \(predictions, references, columns\)"),
        ("user_metrics_for_test:constant", r"must be a function of"),
        ("user_metrics_nowhere:f", r"no module 'user_metrics_nowhere' on Python's path"),
        ("user_metrics_needy:f", r"No module named 'a_package_nobody_has'; install what it imports"),
        ("user_metrics_torn:f", r"failed with SyntaxError"),
        ("user_metrics_for_test:", r"not of the form package.module:function"),
    ],
)
def test_a_function_that_cannot_be_used_is_refused_before_the_start(name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_function(name)
