"""The Ray Tune executor: the contract, and what is its own: workers that die, stay warm, and never see the driver's home."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeper.executors.base import EngineFactory
from sweeper.executors.tune import TuneExecutor
from sweeper.records import Executor
from sweeper.spec.models import ExecutorSpec
from tests.contracts.executor import ExecutorContract, Make, setup


@pytest.fixture
def depot_root(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def make(tmp_path: Path, depot_root: Path, ray_cluster: Path) -> Make:
    def build(factory: EngineFactory) -> Executor:
        return TuneExecutor(setup(tmp_path), depot_root, ExecutorSpec(workers=2), factory)

    return build


class TestTuneExecutor(ExecutorContract):
    @pytest.fixture
    def make(self, make: Make) -> Make:
        return make
