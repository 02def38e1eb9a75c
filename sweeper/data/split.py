"""Which side of the split a row falls on.

By hash (the default) or group, a row's side is a threshold on a salted hash of its source content or of its group's name:

    0 ......... test ......... test + validation ......................... 1
    |   test    |     validation      |              train                |

No seed and no order enter, so neither new rows nor another template, tokenizer or limit ever moves a test row into training,
and exact copies of a row share its side. By column, time and files the data's owner decides.
Does not know: files, tokens. Cost: numpy on 8 bytes a row.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sweeper.data.fingerprint import SIDE, as_text, hash64
from sweeper.errors import DataError, nearest
from sweeper.spec.models import SplitSpec

SIDES = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)
_DEFAULT_NAMES: dict[str, list[str]] = {
    "train": ["train", "training"],
    "validation": ["validation", "valid", "val", "dev"],
    "test": ["test"],
}

Sides = npt.NDArray[np.uint8]


def rule(split: SplitSpec) -> dict[str, object]:
    """What of a split decides over sides: the part that enters the rows fingerprint."""
    fields: dict[str, object] = {"by": split.by}
    if split.by in ("hash", "group", "time"):
        fields |= {"validation": split.validation, "test": split.test}
    if split.by in ("group", "time", "column"):
        fields["column"] = split.column
    if split.by == "column":
        fields["names"] = {side: sorted(values) for side, values in side_names(split).items()}
    return fields


def side_names(split: SplitSpec) -> dict[str, list[str]]:
    """by column: the values that mean each side, as text. Raises DataError for a side that does not exist or a value twice."""
    if split.names is None:
        return _DEFAULT_NAMES
    for side in split.names:
        if side not in SIDES:
            raise DataError(f"data.split.names has the side {side!r}; {nearest(side, SIDES)}")
    names = {side: [as_text(value) for value in values] for side, values in split.names.items()}
    values = [value for group in names.values() for value in group]
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise DataError(f"data.split.names gives the value {twice!r} twice; each value belongs to one side")
    return names


def hash_keys(hashes: Sequence[int]) -> list[int]:
    """64-bit keys of rows by their own content hash: what `threshold` compares."""
    return [hash64(f"{value:016x}".encode(), SIDE) for value in hashes]


def group_keys(values: Sequence[object], hashes: Sequence[int]) -> list[int]:
    """64-bit keys of rows by their group; a row without one is a group of its own."""
    names = [f"group {as_text(value)}" if as_text(value) else f"{own:016x}" for value, own in zip(values, hashes, strict=True)]
    return [hash64(name.encode(), SIDE) for name in names]


def threshold(keys: npt.NDArray[np.uint64], validation: float, test: float) -> Sides:
    """Sides of uint64 keys: the lowest share `test` is test, the next share `validation` is validation."""
    sides = np.full(len(keys), TRAIN, np.uint8)
    sides[keys < np.uint64(int((validation + test) * 2**64))] = VALIDATION
    sides[keys < np.uint64(int(test * 2**64))] = TEST
    return sides


def column_sides(values: Sequence[object], split: SplitSpec, first_row: int) -> list[int]:
    """by column: the side each value names. Raises DataError for a value that names none (rows count from 1)."""
    side_of = {value: SIDES.index(side) for side, group in side_names(split).items() for value in group}
    texts = [as_text(value).strip() for value in values]
    try:
        return [side_of[text] for text in texts]
    except KeyError as error:
        text = error.args[0]
        row = first_row + texts.index(text)
        raise DataError(
            f"the split column {split.column!r} is {text!r} in row {row}, which names no side; {nearest(text, side_of)} "
            "(data.split.names says which values are train, validation and test)"
        ) from None


def moments(values: Sequence[object], column: str, first_row: int) -> tuple[set[str], list[float]]:
    """by time: each value as a number to sort by, and which kinds there were (number, date).

    A number stands for itself; a date is ISO 8601, in UTC unless it says otherwise. Raises DataError for anything else.
    """
    kinds: set[str] = set()
    times = []
    for row, value in enumerate(values, first_row):
        kind, time = _moment(value)
        if kind is None:
            raise DataError(
                f"the time column {column!r} is {as_text(value)!r} in row {row}, but must be a number or a date such as "
                "2024-05-31; mend or leave out that row"
            )
        kinds.add(kind)
        times.append(time)
    return kinds, times


def _moment(value: object) -> tuple[str | None, float]:
    if isinstance(value, bool) or value is None:
        return None, 0.0
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day)
    if isinstance(value, int | float):
        return ("number", float(value)) if value == value else (None, 0.0)
    if not isinstance(value, datetime.datetime):
        text = as_text(value).strip()
        try:
            number = float(text)
            return ("number", number) if number == number else (None, 0.0)
        except ValueError:
            pass
        try:
            value = datetime.datetime.fromisoformat(text)
        except ValueError:
            return None, 0.0
    if value.tzinfo is None:
        value = value.replace(tzinfo=datetime.UTC)
    return "date", value.timestamp()


def time_sides(times: npt.NDArray[np.float64], validation: float, test: float) -> Sides:
    """Oldest rows train, newest test; rows of the same time share a side, the newer one."""
    sides = np.full(len(times), TRAIN, np.uint8)
    ordered = np.sort(times)
    for side, share in ((VALIDATION, validation + test), (TEST, test)):
        count = round(len(times) * share)
        if count:
            sides[times >= ordered[len(times) - count]] = side
    return sides
