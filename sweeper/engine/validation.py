"""The validation side as an engine's trials see it: how many rows an evaluation reads, what it measured, and which is the best.

`evaluate.py` reads the rows; this file knows the study around that: its counts, metrics and objective, and where outcomes are kept.
Does not know slots, schedules or who else trains. Cost: the rows' ids in memory, and references where a metric reads text; a
measurement is the metrics' own time and one file of outcomes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from sweeper.data.tokens import TokenInfo, TokenSet
from sweeper.engine.base import EngineSetup
from sweeper.engine.checkpoint import Measured
from sweeper.engine.evaluate import Evaluation, plan
from sweeper.engine.metrics import compute, needs_text
from sweeper.engine.model import load_tokenizer
from sweeper.engine.outcomes import to_parquet
from sweeper.engine.trial import Running
from sweeper.errors import TrialError
from sweeper.records import Depot

OUTCOMES_FILE = "rows.parquet"


class Validation:
    """Evaluations of a study's trials on `data`. `train` is what training costs are worked out from."""

    def __init__(self, setup: EngineSetup, train: TokenInfo, data: TokenSet, depot: Depot) -> None:
        self.data = data
        self._setup = setup
        self._depot = depot
        self._plan = plan(setup, train, data.info)
        self._names = tuple(dict.fromkeys(("loss", *setup.metrics)))
        self._row_ids: list[str] = data.row_ids()
        self._texts, self._references = self._decoder()

    def _decoder(self) -> tuple[Callable[[Sequence[int]], str] | None, list[str]]:
        """Token ids to text, and the references; nothing where no metric reads text."""
        if not needs_text(self._setup.metrics, self.data.info.task):
            return None, []
        tokenizer = load_tokenizer(self._setup.model, self._setup.trust_remote_code)
        return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)), self.data.references()

    def rows(self, running: Running, nominal: int) -> int:
        """Rows that the trial's evaluation `nominal` reads."""
        whole = running.is_final(nominal) or running.is_rung(nominal)
        return self._plan.full if whole else self._plan.between

    def begin(self, slot: int, count: int, chunk_tokens: int) -> Evaluation:
        """An evaluation of the trial in `slot` on the first `count` rows."""
        return Evaluation(slot, self.data, count, chunk_tokens, self._setup.evaluate.max_new_tokens, self._texts)

    def measure(self, running: Running, nominal: int) -> Measured:
        """Metrics of a finished evaluation, with its outcomes in the depot. Raises TrialError if the loss is not finite."""
        assert running.evaluation is not None
        count, data = running.evaluation.count, self.data
        rows = running.evaluation.outcomes(self._row_ids[:count], self._references[:count])
        values = compute(self._names, rows, data.info, lambda name: data.column(name)[:count])
        if not math.isfinite(values["loss"]):
            raise TrialError(f"the validation loss is {values['loss']} at {running.progress.examples} examples")
        name = f"outcomes/{running.spec.study}/{running.spec.number}/{nominal}"
        self._depot.put(name, {OUTCOMES_FILE: to_parquet(rows)})
        metrics = {f"validation/{key}": value for key, value in values.items()}
        return Measured(metrics, nominal, running.progress.examples, name)

    def is_best(self, measured: Measured, best: Measured | None) -> bool:
        """Whether `measured` is better than the trial's `best` so far; never where the last evaluation is what counts."""
        if self._setup.at != "best" or best is None:
            return self._setup.at == "best"
        key = f"validation/{self._setup.objective}"
        return (measured.metrics[key] > best.metrics[key]) if self._setup.maximize else (measured.metrics[key] < best.metrics[key])
