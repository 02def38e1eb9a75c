"""The paired bootstrap says BETTER when there is a difference to see, and seldom when there is none."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from sklearn.metrics import f1_score

from sweeper.engine.outcomes import RowOutcomes
from sweeper.errors import UserError
from sweeper.evaluation.significance import compare, macro_f1
from sweeper.records import Comparison, Verdict

Bools = np.typing.NDArray[np.bool_]


def outcomes(labels: np.typing.NDArray[np.int32], predictions: np.typing.NDArray[np.int32], loss: object = 1.0) -> RowOutcomes:
    n = len(labels)
    return RowOutcomes(
        row_ids=[f"row{i}" for i in range(n)],
        loss_sum=np.broadcast_to(np.asarray(loss, np.float64), n).copy(),
        tokens=np.arange(n) % 7 + 1,
        labels=labels.astype(np.int32),
        predictions=predictions.astype(np.int32),
    )


def pair(n: int, base_right: float, other_right: float, seed: int) -> tuple[RowOutcomes, RowOutcomes]:
    """Two classifiers of three classes with these true accuracies, whose mistakes are independent."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    base, other = (np.where(rng.random(n) < right, labels, (labels + 1) % 3) for right in (base_right, other_right))
    return outcomes(labels, base), outcomes(labels, other)


def judged(base: RowOutcomes, other: RowOutcomes, metric: str = "accuracy", maximize: bool = True, **more: int) -> Comparison:
    return compare(base, other, metric, base_trial=0, other_trial=7, maximize=maximize, **more)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_a_large_gain_is_better_and_its_reverse_worse(metric: str) -> None:
    base, other = pair(800, 0.7, 0.8, seed=1)
    better, worse = judged(base, other, metric), judged(other, base, metric)
    assert better.verdict is Verdict.BETTER
    assert worse.verdict is Verdict.WORSE
    assert better.low > 0
    assert better.difference == pytest.approx(better.other - better.base)
    assert better.low < better.difference < better.high
    assert (better.base_trial, better.other_trial, better.rows) == (0, 7, 800)


def test_a_small_gain_on_few_rows_is_no_better() -> None:
    base, other = pair(60, 0.75, 0.77, seed=2)
    assert judged(base, other).verdict is Verdict.NO_BETTER


def test_a_configuration_is_no_better_than_itself() -> None:
    base, _ = pair(100, 0.7, 0.8, seed=3)
    result = judged(base, base)
    assert (result.difference, result.low, result.high, result.verdict) == (0, 0, 0, Verdict.NO_BETTER)


def test_a_lower_loss_is_better_and_tokens_weigh() -> None:
    rng = np.random.default_rng(4)
    labels = np.zeros(300, np.int32)
    loss = rng.gamma(2.0, size=300)
    base, other = outcomes(labels, labels, loss), outcomes(labels, labels, loss * 0.9)
    result = judged(base, other, "loss", maximize=False)
    assert result.verdict is Verdict.BETTER
    assert result.base == pytest.approx(base.loss_sum.sum() / base.tokens.sum())
    assert result.other == pytest.approx(0.9 * result.base)
    perplexity = judged(base, other, "perplexity", maximize=False)
    assert perplexity.base == pytest.approx(math.exp(result.base))
    assert perplexity.verdict is Verdict.BETTER


def test_equal_systems_are_called_different_about_as_often_as_promised() -> None:
    false_alarms = sum(judged(*pair(200, 0.7, 0.7, seed), samples=400).verdict is not Verdict.NO_BETTER for seed in range(200))
    # 10 of 200 are expected; 24 would be a chance of 1 in 10,000
    assert 1 <= false_alarms < 24


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    base, other = pair(1000, 0.6, 0.8, seed=5)
    result = judged(base, other)
    correct = [(rows.predictions == rows.labels).astype(float) for rows in (base, other)]
    error = np.std(correct[1] - correct[0]) / math.sqrt(1000)
    assert result.high - result.low == pytest.approx(2 * 1.96 * error, rel=0.08)


def test_macro_f1_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(6)
    for classes in (2, 3, 5):
        labels, predictions = rng.integers(0, classes, (2, 40))
        labels[labels == 1] = 0  # one class is only ever predicted
        counts = np.zeros((1, classes + 1, classes + 1))
        np.add.at(counts[0], (labels, predictions), 1)
        assert macro_f1(counts)[0] == pytest.approx(f1_score(labels, predictions, average="macro", zero_division=0))


def test_rows_are_paired_by_id_whatever_their_order() -> None:
    base, other = pair(300, 0.7, 0.8, seed=7)
    shuffled = other.take(np.random.default_rng(0).permutation(300))
    assert judged(base, shuffled) == judged(base, other)


def test_equal_arguments_give_an_equal_result_and_the_seed_matters() -> None:
    base, other = pair(300, 0.7, 0.75, seed=8)
    assert judged(base, other) == judged(base, other)
    assert judged(base, other, seed=1).low != judged(base, other).low


def test_other_rows_are_refused_with_their_number() -> None:
    base, other = pair(50, 0.7, 0.8, seed=9)
    with pytest.raises(UserError, match="trials 0 and 7 were not measured on the same rows: 10 only in 0, 0 only in 7"):
        judged(base, other.take(range(40)))


def test_the_same_rows_with_other_labels_are_refused() -> None:
    base, _ = pair(50, 0.7, 0.8, seed=10)
    other, _ = pair(50, 0.7, 0.8, seed=11)
    with pytest.raises(UserError, match="other labels or tokens"):
        judged(base, other)


def test_one_row_is_too_few() -> None:
    base, other = pair(50, 0.7, 0.8, seed=12)
    with pytest.raises(UserError, match="at least 2"):
        judged(base.take([0]), other.take([0]))


def test_a_metric_that_rows_cannot_give_names_those_they_can() -> None:
    base, other = pair(50, 0.7, 0.8, seed=13)
    with pytest.raises(UserError, match="'chrf' cannot be compared row by row; allowed: accuracy, exact_match, loss"):
        judged(base, other, "chrf")


def test_exact_match_reads_decoded_text() -> None:
    n = 60
    labels, references = np.full(n, -1, np.int32), ["yes"] * n
    rows = [
        RowOutcomes([str(i) for i in range(n)], np.ones(n), np.ones(n, np.int64), labels, texts=texts, references=references)
        for texts in (["no"] * 30 + ["yes"] * 30, [" yes\n"] * n)
    ]
    result = judged(rows[0], rows[1], "exact_match")
    assert (result.base, result.other, result.verdict) == (0.5, 1.0, Verdict.BETTER)
    with pytest.raises(UserError, match="needs classes"):
        judged(rows[0], rows[1], "accuracy")


def test_many_rows_are_judged_in_bounded_time() -> None:
    base, other = pair(20_000, 0.7, 0.71, seed=14)
    start = time.perf_counter()
    judged(base, other, "macro_f1")
    assert time.perf_counter() - start < 30
