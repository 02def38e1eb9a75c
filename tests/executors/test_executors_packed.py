"""The packed executor: the contract, with one engine of two slots and with two engines of one, and what is its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeper.executors.base import EngineFactory
from sweeper.executors.packed import PackedExecutor
from sweeper.records import Executor
from sweeper.spec.models import ExecutorSpec
from tests.contracts.executor import ExecutorContract, Make, setup


@pytest.fixture
def depot_root(tmp_path: Path) -> Path:
    return tmp_path / "home"


class TestOneEngineOfTwoSlots(ExecutorContract):
    @pytest.fixture
    def make(self, tmp_path: Path, depot_root: Path, ray_cluster: Path) -> Make:
        def build(factory: EngineFactory) -> Executor:
            return PackedExecutor(setup(tmp_path, slots=2), depot_root, ExecutorSpec(workers=1), factory)

        return build


class TestTwoEnginesOfOneSlot(ExecutorContract):
    @pytest.fixture
    def make(self, tmp_path: Path, depot_root: Path, ray_cluster: Path) -> Make:
        def build(factory: EngineFactory) -> Executor:
            return PackedExecutor(setup(tmp_path), depot_root, ExecutorSpec(workers=2), factory)

        return build
