"""Whether what was tokenised can be trained on, and what people should be told of it.

Does not know: files, tokenizers. Cost: none to speak of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from sweeper.data.encode import Encoded
from sweeper.data.labels import Labels, check_classes
from sweeper.data.store import RowsInfo
from sweeper.errors import DataError
from sweeper.spec.models import DataSpec

_WORDS = {"long": "too long", "empty": "empty", "unlabelled": "without a label"}


@dataclass
class Tally:
    """What became of one side's rows."""

    fates: Counter[str] = field(default_factory=Counter)
    classes: Counter[int] = field(default_factory=Counter)
    longest: int = 0  # tokens before any cut, dropped rows included
    longest_used: int = 0  # tokens of the longest row kept

    def add(self, coded: list[Encoded]) -> None:
        """Counts a batch."""
        for row in coded:
            self.fates[row.fate] += 1
            self.longest = max(self.longest, row.length)
            if row.row is not None:
                self.classes[row.row.label] += 1
                self.longest_used = max(self.longest_used, len(row.row.ids))

    @property
    def rows(self) -> int:
        """Rows that can be used."""
        return self.fates["kept"] + self.fates["cut"]

    @property
    def seen(self) -> int:
        """Rows that were looked at."""
        return self.fates.total()


def check_sides(rows: RowsInfo, data: DataSpec) -> None:
    """Raises DataError if training or validation has no row at all."""
    split = data.split
    total = sum(rows.rows.values())
    for side in ("train", "validation"):
        if rows.rows[side]:
            continue
        if split.by in ("column", "files"):
            raise DataError(f"no row is on the {side} side by {split.by}; data.split must give it at least one row")
        raise DataError(
            f"none of the {total:,} rows falls on the {side} side (split by {split.by}, validation {split.validation:g}, "
            f"test {split.test:g}); add rows, raise the share, or split by column or files"
        )


def judge(
    data: DataSpec,
    max_length: int,
    tallies: Mapping[str, Tally],
    labels: Labels | None,
    rows: RowsInfo,
    given: Mapping[str, int],
) -> list[str]:
    """Notices about what was changed or looks thin.

    `given`: value of the label column -> rows of the training side, before any limit.
    Raises DataError for rows that are too long (too_long: refuse), labels that are mostly missing, a side of which no row is
    left, or a class that training lacks.
    """
    fates = sum((tally.fates for tally in tallies.values()), Counter[str]())
    total = fates.total()
    longest = max(tally.longest for tally in tallies.values())
    if fates["long"] and data.too_long == "refuse":
        raise DataError(
            f"{fates['long']:,} of {total:,} rows are longer than {max_length:,} tokens (the longest has {longest:,}); "
            "set data.too_long to cut or drop, or raise training.max_length as far as the model's context allows"
        )
    if fates["unlabelled"] > total / 2:
        raise DataError(
            f"{fates['unlabelled']:,} of {total:,} rows have no label; label them, or name the right column in data.columns.label"
        )
    for side, tally in tallies.items():
        if not tally.rows:
            why = ", ".join(f"{tally.fates[fate]:,} {word}" for fate, word in _WORDS.items() if tally.fates[fate])
            raise DataError(f"no {side} row of {tally.seen:,} can be used ({why}); mend the rows, or see data.too_long")
    notices = _changes(fates, max_length, longest)
    if rows.across:
        notices.append(f"{rows.across:,} rows stand word for word on another side of the split as well; results there are too good")
    if not rows.rows["test"] and data.split.test and data.split.by != "files":
        notices.append("no row is set aside as test, so the winner cannot be confirmed on rows that no trial has seen")
    if labels is not None:
        limited = tallies["train"].seen < rows.rows["train"]
        notices += check_classes(labels, class_counts(tallies, labels.words), given, limited)
    return notices


def class_counts(tallies: Mapping[str, Tally], words: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Side -> label -> rows."""
    return {side: {word: tally.classes[number] for number, word in enumerate(words)} for side, tally in tallies.items()}


def _changes(fates: Counter[str], max_length: int, longest: int) -> list[str]:
    total = fates.total()
    changes = {
        "cut": f"cut to {max_length:,} tokens (the longest had {longest:,})",
        "long": f"dropped, because they are longer than {max_length:,} tokens",
        "empty": "dropped, because they have no text, prompt or answer",
        "unlabelled": "dropped, because they have no label",
    }
    return [
        f"{fates[fate]:,} of {total:,} training and validation rows were {what}" for fate, what in changes.items() if fates[fate]
    ]
