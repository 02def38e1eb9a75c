"""Tokens of a row that need not be computed with it: those that all rows begin with, and those that nothing is predicted from.

What all rows of a study begin with, an instruction or a template's first words, is computed once a chunk, not once a row.

A token sees only those before it, so what all rows begin with has the same states in all of them, and the gradients of its states
are the sums over the rows: the numbers are those of rows computed whole, but for the order of sums. What is shared is fixed for a
study (all rows of its training and validation sides begin so), and a chunk of several rows always shares it: what a trial computes
depends on its own chunk, never on its neighbours. LoRA's dropout draws one mask for such a token, as for any other.
Attention alone differs: a row's own tokens attend to the shared ones and to themselves (`layout.py`, `attention.py`).
After the last token that predicts one a row ends: nothing sees what follows. Its end token is predicted, and predicts nothing.

Does not know models. Cost: looking at a side takes 2 ms for each of its shared tokens and a million rows; in a pass a copy of the
shared keys and values for each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from sweeper.data.tokens import TokenRow, TokenSet

FEWEST = 2
"""Shared tokens that are worth another span: a single one, which many tokenizers begin every text with, is not."""

Ids = npt.NDArray[np.int32]


def study_start(sides: Sequence[TokenSet]) -> Ids:
    """int32 [S]: what every row of `sides` begins with, before anything is predicted; empty where that is less than FEWEST."""
    starts = [side.start().tolist() for side in sides if len(side)]
    same = [tokens[0] for tokens in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*starts, strict=False))]
    return np.array(same if len(same) >= FEWEST else [], np.int32)


def asked_bounds(row: TokenRow) -> tuple[int, int]:
    """How many tokens of `row` there are up to the first that predicts something, and up to the last, themselves included; all
    where none does."""
    predicted = np.flatnonzero(row.target[1:])
    return (int(predicted[0]) + 1, int(predicted[-1]) + 1) if len(predicted) else (len(row.ids), len(row.ids))


def shared(start: Ids, asking: Sequence[Ids]) -> int:
    """How many tokens stand once for all rows of a part, of which `asking` are those up to the first that predicts something:
    all of `start`, or none where there is one row, or a row that does not begin so or predicts something from there."""
    count = len(start)
    several = count > 0 and len(asking) > 1
    return count if several and all(len(ids) > count and np.array_equal(ids[:count], start) for ids in asking) else 0
