"""Metrics of one evaluation, computed from its per-row outcomes.

Purpose: the numbers behind `validation/NAME`. What each means, and where it comes from:

    loss         sum of -log p over all target tokens / their number; nats per token
    perplexity   exp(loss)
    accuracy     share of rows whose predicted class is the row's
    macro_f1     mean F1 of the classes that occur among labels or predictions (scikit-learn's macro average)
    exact_match  share of decoded texts equal to their reference, both stripped
    rouge_l      mean ROUGE-L F-measure (Lin 2004; rouge-score, no stemming)
    chrf         corpus chrF (Popović 2015; sacrebleu's defaults) divided by 100
    package.module:function   a user's function(predictions, references, columns) -> number

All but loss and perplexity lie between 0 and 1. Does not know: models, or how outcomes were made.
Cost: about 1 ms for 2,000 rows of classes; ROUGE-L and chrF about 0.2 ms a row.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sweeper.data.tokens import TokenInfo
from sweeper.engine.outcomes import RowOutcomes
from sweeper.errors import TrialError, UserError
from sweeper.spec.metrics import METRICS, is_function

Function = Callable[[list[str], list[str], Mapping[str, list[object]]], Any]
ColumnReader = Callable[[str], list[object]]


def compute(names: Sequence[str], rows: RowOutcomes, info: TokenInfo, columns: ColumnReader) -> dict[str, float]:
    """The metrics `names` of these rows, under their bare names.

    `columns(name)` gives a source column's values in the order of `rows`; it is called only for what a user's function reads.
    A metric may be NaN or infinite where the loss is. Raises TrialError if a user's function fails or gives no number, and
    ValueError for an unknown name or outcomes that lack what a metric reads (`needs_classes`, `needs_text`).
    """
    values: dict[str, float] = {}
    for name in names:
        if is_function(name):
            values[name] = _call_function(name, rows, info, columns)
        elif name in _COMPUTE:
            values[name] = _COMPUTE[name](rows)
        else:
            raise ValueError(f"unknown metric {name!r}; there are {', '.join(_COMPUTE)}, and package.module:function")
    return values


def needs_text(names: Sequence[str], task: str) -> bool:
    """Whether rows must be decoded for these metrics: text metrics, and users' functions where there are no classes."""
    return any(task != "classify" if is_function(name) else METRICS[name].decode for name in names)


def needs_classes(names: Sequence[str], task: str) -> bool:
    """Whether rows must be scored label by label for these metrics."""
    return task == "classify" and any(is_function(name) or name in ("accuracy", "macro_f1") for name in names)


def check_function(name: str) -> None:
    """Raises UserError unless `package.module:function` can be imported and called with three arguments."""
    load_function(name)


def load_function(name: str) -> Function:
    """The user's function `package.module:function`. Importing runs the user's module. Raises UserError."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute.isidentifier():
        raise UserError(f"metric {name!r} is not of the form package.module:function, e.g. my_metrics:weighted_accuracy")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise UserError(
                f"metric {name!r}: there is no module {error.name!r} on Python's path; install it, or put its folder in PYTHONPATH"
            ) from error
        raise UserError(f"metric {name!r}: importing {module_name} failed: {error}; install what it imports") from error
    except Exception as error:
        raise UserError(f"metric {name!r}: importing {module_name} failed with {_said(error)}; mend the module") from error
    function = getattr(module, attribute, None)
    if function is None:
        public = sorted(key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_"))
        raise UserError(f"metric {name!r}: {module_name} has no {attribute!r}; its functions: {', '.join(public) or 'none'}")
    if not callable(function) or not _takes_three(function):
        raise UserError(f"metric {name!r} must be a function of (predictions, references, columns) that returns a number")
    return function  # type: ignore[no-any-return]


class ColumnView(Mapping[str, list[object]]):
    """A user's view of the source columns: `columns["domain"]` is a list in the order of the predictions, read when asked for.

    It cannot be listed, as the reader of a part of the rows does not know all names. Raises KeyError for an unknown column.
    """

    def __init__(self, read: ColumnReader) -> None:
        self._read = read
        self._known: dict[str, list[object]] = {}

    def __getitem__(self, name: str) -> list[object]:
        if name not in self._known:
            self._known[name] = self._read(name)
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def _loss(rows: RowOutcomes) -> float:
    tokens = int(rows.tokens.sum())
    return float(rows.loss_sum.sum()) / tokens if tokens else math.nan


def _perplexity(rows: RowOutcomes) -> float:
    loss = _loss(rows)
    return math.exp(loss) if not loss > 700 else math.inf


def _accuracy(rows: RowOutcomes) -> float:
    predicted = _predicted(rows, "accuracy")
    return float(np.mean(predicted == rows.labels)) if len(rows) else math.nan


def _macro_f1(rows: RowOutcomes) -> float:
    from sklearn.metrics import f1_score  # half a second to import, and most sweeps never ask for it

    predicted = _predicted(rows, "macro_f1")
    return float(f1_score(rows.labels, predicted, average="macro", zero_division=0)) if len(rows) else math.nan


def _exact_match(rows: RowOutcomes) -> float:
    texts, references = _decoded(rows, "exact_match")
    return _mean([float(a.strip() == b.strip()) for a, b in zip(texts, references, strict=True)])


def _rouge_l(rows: RowOutcomes) -> float:
    from rouge_score import rouge_scorer

    texts, references = _decoded(rows, "rouge_l")
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    return _mean([scorer.score(b, a)["rougeL"].fmeasure for a, b in zip(texts, references, strict=True)])


def _chrf(rows: RowOutcomes) -> float:
    import sacrebleu

    texts, references = _decoded(rows, "chrf")
    return float(sacrebleu.corpus_chrf(texts, [references]).score) / 100 if texts else math.nan


_COMPUTE: dict[str, Callable[[RowOutcomes], float]] = {
    "loss": _loss,
    "perplexity": _perplexity,
    "accuracy": _accuracy,
    "macro_f1": _macro_f1,
    "exact_match": _exact_match,
    "rouge_l": _rouge_l,
    "chrf": _chrf,
}


def _call_function(name: str, rows: RowOutcomes, info: TokenInfo, columns: ColumnReader) -> float:
    try:
        function = load_function(name)
    except UserError as error:
        raise TrialError(str(error)) from error
    if info.task == "classify":
        predicted = _predicted(rows, name)
        predictions, references = ([info.labels[i] for i in classes] for classes in (predicted, rows.labels))
    else:
        predictions, references = _decoded(rows, name)
    try:
        value = function(list(predictions), list(references), ColumnView(columns))
    except Exception as error:
        raise TrialError(f"metric {name!r} failed with {_said(error)}") from error
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TrialError(f"metric {name!r} returned {_short(value)}, but must return a number") from error


def _predicted(rows: RowOutcomes, name: str) -> Any:
    classes = rows.classes()
    if classes is None:
        raise ValueError(f"{name} needs scores or predictions, but these outcomes have neither")
    return classes


def _decoded(rows: RowOutcomes, name: str) -> tuple[list[str], list[str]]:
    if rows.texts is None or rows.references is None:
        raise ValueError(f"{name} needs decoded texts and references, but these outcomes lack them")
    return rows.texts, rows.references


def _takes_three(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind([], [], {})
    except TypeError:
        return False
    except ValueError:  # a built-in without a signature: calling it will tell
        return True
    return True


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
