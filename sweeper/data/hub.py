"""Rows of a Hugging Face hub data set, through `datasets` (the only file that imports it).

Class labels come as their names, not as their numbers. HF_HUB_OFFLINE and the hub's own cache are honoured.
Does not know: splits of ours, tasks. Cost: `datasets` downloads and converts once, then memory-maps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sweeper.errors import DataError

HUB_BATCH_ROWS = 2048


@dataclass(frozen=True)
class HubPart:
    """One split of a hub data set (or of a folder that `datasets.load_dataset` understands)."""

    name: str
    config: str | None
    split: str
    revision: str | None
    role: str = ""

    def stamp(self) -> tuple[list[object], float]:
        """Name and the library's own fingerprint of the content; it never changes under that name, so the time is 0.

        Raises DataError if the data set cannot be loaded.
        """
        return [self.name, self.config, self.split, self.revision, self._loaded._fingerprint], 0.0

    def batches(self) -> Iterator[Mapping[str, list[object]]]:
        """The rows of the split. Raises DataError if it cannot be loaded."""
        data = self._loaded
        names = {column: feature.names for column, feature in data.features.items() if type(feature).__name__ == "ClassLabel"}
        for start in range(0, len(data), HUB_BATCH_ROWS):
            batch: dict[str, list[object]] = data[start : start + HUB_BATCH_ROWS]
            for column, classes in names.items():
                batch[column] = [_named(value, classes) for value in batch[column]]
            yield batch

    @cached_property
    def _loaded(self) -> Any:
        import datasets

        datasets.disable_progress_bars()
        try:
            return datasets.load_dataset(self.name, self.config, split=self.split, revision=self.revision)
        except Exception as error:
            # The library raises a dozen unrelated types here; each is about the name, the split or the network.
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DataError(
                f"hub data set {self.name!r} (config {self.config}, split {self.split!r}) cannot be loaded: {reason}; "
                "mend its name, config or split, or check the network and HF_HUB_OFFLINE"
            ) from error


def _named(value: object, names: list[str]) -> object:
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None
