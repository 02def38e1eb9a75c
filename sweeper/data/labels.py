"""Classes: which words stand for which value of the label column, and whether every side has what it needs.

Does not know: tokens, files. Cost: a few dictionary look-ups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sweeper.errors import DataError, nearest

_MOST_CLASSES = 1000
_RARE = 10
"""A class with fewer training rows than this gets a notice."""


@dataclass(frozen=True)
class Labels:
    """`words[c]` is what the model answers for class c; `class_of` maps values of the label column, as text, to classes."""

    words: tuple[str, ...]
    class_of: Mapping[str, int]

    @property
    def by_word(self) -> Mapping[str, int]:
        """Class of each answer."""
        return {word: number for number, word in enumerate(self.words)}


def resolve(given: dict[str, str] | list[str] | None, found: Mapping[str, int], column: str) -> Labels:
    """Labels as the spec gives them, else as found (sorted).

    `found` counts the label column's values of training and validation rows, as stripped text, without empty ones. Raises DataError
    for a value that the spec does not list, an empty or repeated answer, one class only, or values that are no classes at all.
    """
    if not found:
        raise DataError(f"the label column {column!r} is empty in every row; name the right column in data.columns.label")
    if given is None:
        rows = sum(found.values())
        if len(found) > _MOST_CLASSES or (len(found) > 20 and len(found) > rows / 2):
            raise DataError(
                f"the label column {column!r} holds {len(found):,} different values in {rows:,} rows, which are no classes; "
                "name the right column in data.columns.label, or use task: instruct for free answers"
            )
        given = sorted(found)
    listed = given.items() if isinstance(given, dict) else zip(given, given, strict=True)
    pairs = [(value.strip(), words.strip()) for value, words in listed]
    if any(not words for _, words in pairs):
        raise DataError("data.labels has an empty answer; give the words that the model is to answer")
    values = [value for value, _ in pairs]
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise DataError(f"data.labels lists {twice!r} twice; list each label once")
    words = tuple(dict.fromkeys(words for _, words in pairs))
    if len(words) == 1 and any(value not in values for value in found):
        raise DataError(
            f"data.labels has only {words[0]!r}, but classify needs at least two; found are: {', '.join(sorted(found))}"
        )
    if len(words) == 1:
        raise DataError(f"all rows have the label {words[0]!r}, but classify needs at least two classes; add rows of another")
    unknown = [value for value in found if value not in values]
    if unknown:
        rows = sum(found[value] for value in unknown)
        raise DataError(
            f"the label column {column!r} is {unknown[0]!r} in {found[unknown[0]]:,} rows ({rows:,} rows in all are not listed in "
            f"data.labels); {nearest(unknown[0], values)}; add it to data.labels or leave those rows out"
        )
    return Labels(words, {value: words.index(word) for value, word in pairs})


def check_classes(labels: Labels, counts: Mapping[str, Mapping[str, int]], given: Mapping[str, int], limited: bool) -> list[str]:
    """Checks the rows per class of train and validation, as they will be used; returns notices about rare classes.

    `given`: value of the label column -> training rows before any was dropped or left out by data.limit.train; `limited`: whether
    that limit leaves rows out. Raises DataError if training lacks a class.
    """
    words, train, validation = labels.words, counts["train"], counts["validation"]
    for number, word in enumerate(words):
        if not train.get(word, 0):
            before = sum(rows for value, rows in given.items() if labels.class_of.get(value) == number)
            raise DataError(_lacking(word, before, validation.get(word, 0), limited))
    few = [(word, train[word], "row" if train[word] == 1 else "rows") for word in words if train[word] < _RARE]
    rare = [f"the class {word!r} has only {count} training {rows}" for word, count, rows in few]
    unseen = [f"the class {word!r} has no validation row, so validation says nothing about it" for word in words]
    return rare + [notice for word, notice in zip(words, unseen, strict=True) if not validation.get(word)]


def _lacking(word: str, before: int, have: int, limited: bool) -> str:
    """The sentence for a class that no training row has; `before`, `have`: its training rows as given, its validation rows."""
    if before and limited:
        return f"no training row within data.limit.train has the label {word!r}, but {before:,} of all do; raise data.limit.train"
    if before:
        return (
            f"all {before:,} training rows with the label {word!r} were dropped, being too long or without text; set data.too_long "
            "to cut, raise training.max_length, or mend those rows"
        )
    where = f"{have:,} validation rows have it" if have else "data.labels or the test rows have it"
    return f"no training row has the label {word!r}, though {where}; add rows of it, or leave it out of the data and of data.labels"
