"""The tokenizer of these tests, and `built`: rows in, bundle out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_helpers import Rows, make_tokenizer, spec_of, write_jsonl
from transformers import PreTrainedTokenizerFast

from sweeper.data.build import Bundle, build


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def built(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[..., Bundle]:
    """Writes rows to data.jsonl (or takes those of the last call) and builds them: built(rows, task=..., **data section)."""

    def run(rows: Rows | None = None, with_tokenizer: Any = None, max_length: int = 64, **data: Any) -> Bundle:
        if rows is not None:
            write_jsonl(tmp_path / "data.jsonl", rows)
        if not data.keys() & {"path", "hub"}:
            data["path"] = str(tmp_path / "data.jsonl")
        return build(spec_of({"task": "classify"} | data, max_length=max_length), with_tokenizer or tokenizer, tmp_path / "home")

    return run
