"""The local executor: the contract, and what is its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeper.engine.base import EngineSetup
from sweeper.engine.depot import FolderDepot
from sweeper.errors import ModelError
from sweeper.executors.base import EngineFactory
from sweeper.executors.local import LocalExecutor
from sweeper.records import Depot, Executor
from tests.contracts.executor import ExecutorContract, Make, Recorder, setup, trial


class TestLocalExecutor(ExecutorContract):
    @pytest.fixture
    def make(self, tmp_path: Path, depot_root: Path) -> Make:
        def build(factory: EngineFactory) -> Executor:
            return LocalExecutor(setup(tmp_path, slots=2), FolderDepot(depot_root), factory)

        return build


def test_a_model_that_cannot_be_used_is_said_before_any_trial_is_asked_for(tmp_path: Path) -> None:
    def refuse(given: EngineSetup, depot: Depot) -> None:
        raise ModelError("no such model")

    source = Recorder([trial(0)])
    with pytest.raises(ModelError, match="no such model"):
        LocalExecutor(setup(tmp_path), FolderDepot(tmp_path / "home"), refuse).run(source)  # type: ignore[arg-type]
    assert source.calls == []
