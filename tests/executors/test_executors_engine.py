"""Both executors with the true engine on a tiny model: what a trial learns does not depend on where it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sweeper.engine.depot import FolderDepot
from sweeper.executors.factory import build_executor
from sweeper.records import Ending, ReportKind
from sweeper.spec.models import SweepSpec
from tests.contracts.executor import Action, Recorder, at_rung
from tests.engine.engine_world import World, trial, write_model
from tests.support.specs import tiny_spec


@pytest.fixture
def build(tmp_path: Path, ray_cluster: Path) -> Callable[..., Recorder]:
    """Runs a source in an executor of a kind, with a home of its own; gives the source back."""
    world = World(tmp_path / "world", write_model(tmp_path / "model", "llama"))

    def run(kind: str, source: Recorder) -> Recorder:
        workers = {"workers": 2} if kind == "tune" else {}
        spec = SweepSpec.model_validate(tiny_spec(world.model, tmp_path / "rows.csv", executor={"kind": kind, **workers}))
        build_executor(spec, world.setup(), tmp_path / kind).run(source)
        return source

    return run


def values(source: Recorder, number: int) -> list[tuple[int, dict[str, float]]]:
    """What a trial's evaluations said of it, times aside."""
    kept = [r for r in source.reports if r.trial == number and r.kind is not ReportKind.PROGRESS]
    return [(r.nominal, {k: v for k, v in r.metrics.items() if k.startswith("validation/")}) for r in kept]


def test_a_trial_learns_the_same_alone_beside_others_paused_and_in_another_process(
    build: Callable[..., Recorder], tmp_path: Path
) -> None:
    trials = [trial(0, rungs=[32]), trial(1, rungs=[32], learning_rate=3e-3, dropout=0.1, batch_size=8)]
    here = build("local", Recorder(trials))
    there = build("tune", Recorder(trials, at_rung(1, Action.PAUSE)))
    assert here.endings() == there.endings() == {0: Ending.COMPLETED, 1: Ending.COMPLETED}
    assert [end.ending for number, end in there.ends if number == 1] == [Ending.PAUSED, Ending.COMPLETED]
    for number in (0, 1):
        assert len(values(here, number)) == 5
        assert values(there, number) == values(here, number)
        homes = [FolderDepot(tmp_path / kind).get(str(dict(source.ends)[number].adapter)) for kind, source in _both(here, there)]
        assert homes[0]["adapter_model.safetensors"] == homes[1]["adapter_model.safetensors"]
    assert {r.worker for r in there.reports} != {r.worker for r in here.reports}


def _both(here: Recorder, there: Recorder) -> list[tuple[str, Recorder]]:
    return [("local", here), ("tune", there)]
