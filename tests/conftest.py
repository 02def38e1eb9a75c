"""What every test shares: no hub, no telemetry, few threads, and a whole tiny model with rows it can learn."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.specs import tiny_spec

SpecMaker = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with its tokenizer, as a user's model folder."""
    from tests.support.tiny import tiny_model

    return tiny_model(tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture(scope="session")
def sentences_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 sentences with columns text, label, domain."""
    from tests.support.tiny import sentences, write_csv

    return write_csv(tmp_path_factory.mktemp("rows") / "sentences.csv", sentences(400), extra=("film", "news"))


@pytest.fixture
def make_spec(model_folder: Path, sentences_csv: Path) -> SpecMaker:
    """Builds a small whole spec; sections given are merged over it."""
    return partial(tiny_spec, model_folder, sentences_csv)
