"""Whether one configuration is better than another on the same rows: a paired bootstrap.

Purpose: the sentence "default against best, with an interval". Rows are drawn with replacement, the same rows for both sides,
and the metric is computed anew for each draw; the 95 % interval of the difference is that of its percentiles (Efron &
Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). Resampling rows measures the chance in *which rows* were read,
not in the training seed: fresh seeds are another experiment.
Does not know: trials' parameters, models, or where outcomes were stored.
Cost: 2,000 samples of 2,000 rows take about 0.1 s; memory is bounded by blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from sweeper.engine.outcomes import RowOutcomes
from sweeper.errors import UserError
from sweeper.records import Comparison, Verdict

LEVEL = 0.95
_BLOCK_DRAWS = 2_000_000  # drawn row numbers held at once: 16 MB
Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
# The metric of drawn rows: index [samples, n] -> (base [samples], other [samples])
Draw = Callable[[Rows], tuple[Floats, Floats]]


def compare(
    base: RowOutcomes,
    other: RowOutcomes,
    metric: str,
    *,
    base_trial: int,
    other_trial: int,
    maximize: bool,
    seed: int = 0,
    samples: int = 2000,
) -> Comparison:
    """`other` against `base` on their rows, paired by row id; the order of rows does not matter.

    `metric` is loss, perplexity, accuracy, macro_f1 or exact_match. The verdict is BETTER or WORSE only if the whole interval
    of the difference lies on that side of 0, else NO_BETTER. Equal arguments give an equal result. Raises UserError if the two
    were not measured on the same rows, if there are fewer than 2, or if the metric cannot be computed from the rows alone.
    """
    if samples < 100:
        raise ValueError(f"samples is {samples}, but an interval needs at least 100")
    base, other = _paired(base, other, base_trial, other_trial)
    draw = _draw(base, other, metric)
    count = len(base)
    (base_value,), (other_value,) = draw(np.arange(count)[None])
    differences = _differences(draw, count, seed, samples)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    return Comparison(
        metric=metric,
        base_trial=base_trial,
        other_trial=other_trial,
        base=float(base_value),
        other=float(other_value),
        difference=float(other_value - base_value),
        low=float(low),
        high=float(high),
        rows=count,
        verdict=_verdict(float(low), float(high), maximize),
    )


def _verdict(low: float, high: float, maximize: bool) -> Verdict:
    if low > 0:
        return Verdict.BETTER if maximize else Verdict.WORSE
    if high < 0:
        return Verdict.WORSE if maximize else Verdict.BETTER
    return Verdict.NO_BETTER


def _differences(draw: Draw, count: int, seed: int, samples: int) -> Floats:
    rng = np.random.default_rng(seed)
    blocks = []
    for size in _blocks(samples, max(1, _BLOCK_DRAWS // count)):
        base, other = draw(rng.integers(0, count, (size, count)))
        blocks.append(other - base)
    return np.concatenate(blocks)


def _blocks(total: int, most: int) -> Iterator[int]:
    for start in range(0, total, most):
        yield min(most, total - start)


def _paired(base: RowOutcomes, other: RowOutcomes, base_trial: int, other_trial: int) -> tuple[RowOutcomes, RowOutcomes]:
    only_base, only_other = set(base.row_ids) - set(other.row_ids), set(other.row_ids) - set(base.row_ids)
    if only_base or only_other:
        raise UserError(
            f"trials {base_trial} and {other_trial} were not measured on the same rows: {len(only_base)} only in {base_trial}, "
            f"{len(only_other)} only in {other_trial}; compare evaluations that read the same validation rows"
        )
    if len(base) < 2:
        raise UserError(f"trials {base_trial} and {other_trial} share {len(base)} rows; a comparison needs at least 2")
    position = {row: i for i, row in enumerate(other.row_ids)}
    aligned = other.take([position[row] for row in base.row_ids])
    if not np.array_equal(base.labels, aligned.labels) or not np.array_equal(base.tokens, aligned.tokens):
        raise UserError(
            f"trials {base_trial} and {other_trial} read the same row ids with other labels or tokens; "
            "compare trials of one study, or of studies with the same data and template"
        )
    return base, aligned


def _draw(base: RowOutcomes, other: RowOutcomes, metric: str) -> Draw:
    if metric in ("loss", "perplexity"):
        return _ratio(base, other, np.exp if metric == "perplexity" else None)
    if metric == "accuracy":
        return _means(_correct(base, metric), _correct(other, metric))
    if metric == "exact_match":
        return _means(_matches(base), _matches(other))
    if metric == "macro_f1":
        return _macro_f1(base, other)
    raise UserError(
        f"metric {metric!r} cannot be compared row by row; allowed: accuracy, exact_match, loss, macro_f1, perplexity. "
        "Compare one of these beside it"
    )


def _means(base: Floats, other: Floats) -> Draw:
    def draw(index: Rows) -> tuple[Floats, Floats]:
        return base[index].mean(1), other[index].mean(1)

    return draw


def _ratio(base: RowOutcomes, other: RowOutcomes, then: Callable[[Floats], Floats] | None) -> Draw:
    tokens = base.tokens.astype(np.float64)

    def draw(index: Rows) -> tuple[Floats, Floats]:
        total = tokens[index].sum(1)
        values = base.loss_sum[index].sum(1) / total, other.loss_sum[index].sum(1) / total
        return values if then is None else (then(values[0]), then(values[1]))

    return draw


def _macro_f1(base: RowOutcomes, other: RowOutcomes) -> Draw:
    classes = int(max(base.labels.max(), _predicted(base, "macro_f1").max(), _predicted(other, "macro_f1").max())) + 1
    cells = [row.labels.astype(np.int64) * classes + _predicted(row, "macro_f1") for row in (base, other)]

    def draw(index: Rows) -> tuple[Floats, Floats]:
        return macro_f1(_confusion(cells[0][index], classes)), macro_f1(_confusion(cells[1][index], classes))

    return draw


def _confusion(cells: Rows, classes: int) -> Floats:
    """Counts [samples, classes (label), classes (prediction)] of `cells` [samples, n] = label * classes + prediction."""
    samples = len(cells)
    shifted = cells + np.arange(samples)[:, None] * classes**2
    counted = np.bincount(shifted.ravel(), minlength=samples * classes**2)
    return counted.reshape(samples, classes, classes).astype(np.float64)


def macro_f1(confusion: Floats) -> Floats:
    """Macro F1 [samples] of counts [samples, label, prediction]: the mean over classes among labels or predictions."""
    hit = np.diagonal(confusion, axis1=1, axis2=2)
    seen = confusion.sum(2) + confusion.sum(1)  # 2 tp + fp + fn
    f1 = np.divide(2 * hit, seen, out=np.zeros_like(seen), where=seen > 0)
    value: Floats = f1.sum(1) / (seen > 0).sum(1)
    return value


def _correct(rows: RowOutcomes, metric: str) -> Floats:
    correct: Floats = (_predicted(rows, metric) == rows.labels).astype(np.float64)
    return correct


def _matches(rows: RowOutcomes) -> Floats:
    if rows.texts is None or rows.references is None:
        raise UserError("metric 'exact_match' needs decoded texts, but these outcomes have none; compare the loss")
    return np.array([a.strip() == b.strip() for a, b in zip(rows.texts, rows.references, strict=True)], np.float64)


def _predicted(rows: RowOutcomes, metric: str) -> npt.NDArray[np.int32]:
    classes = rows.classes()
    if classes is None or (rows.labels < 0).any():
        raise UserError(f"metric {metric!r} needs classes, but these outcomes have none; compare the loss")
    return classes
