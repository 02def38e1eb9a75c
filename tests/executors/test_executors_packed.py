"""The packed executor: the contract, with one engine of two slots and with two engines of one, and what is its own."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
import ray
import torch
from safetensors.torch import load_file, save_file

from sweeper.engine.base import Capacity
from sweeper.engine.depot import FolderDepot
from sweeper.errors import ModelError, ResourceError
from sweeper.executors.actor import Limits, halved, limited, shared_pages
from sweeper.executors.base import EngineFactory, Sharing
from sweeper.executors.local import LocalExecutor
from sweeper.executors.packed import PackedExecutor
from sweeper.executors.replay import Replay
from sweeper.records import Decision, Ending, Executor, Report, ReportKind, TrialSpec
from sweeper.spec.models import ExecutorSpec, TrainingSpec
from tests.contracts.executor import Action, Curves, ExecutorContract, GivesBack, Make, Recorder, pids, setup, trial
from tests.contracts.terminal import check_ctrl_c
from tests.support.engines import Deadly, Dying, Faulty, FullDisk, Refusing, SlowToPause, Unsteady


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


class Watching:
    """Keeps what an executor said of its engines."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.shared: list[Sharing] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def sharing(self, sharing: Sharing) -> None:
        self.shared.append(sharing)


@dataclass
class Packed:
    """Builds executors of some engines and slots."""

    folder: Path
    watch: Watching

    def __call__(self, engine: EngineFactory, engines: int = 2, slots: int = 2, **settings: object) -> PackedExecutor:
        given = replace(setup(self.folder, slots=slots), micro_tokens=512, **settings)
        return PackedExecutor(given, self.folder / "home", ExecutorSpec(workers=engines), engine, self.watch)


@pytest.fixture
def packed(tmp_path: Path, ray_cluster: Path) -> Packed:
    return Packed(tmp_path, Watching())


def longer(number: int) -> TrialSpec:
    """A trial with a rung at its first of ten evaluations."""
    return replace(trial(number), evaluations=tuple(range(10, 110, 10)), examples=100)


def test_trials_are_spread_over_the_engines_and_the_most_inside_one_is_told(packed: Packed, tmp_path: Path) -> None:
    log = tmp_path / "pids"
    source = Recorder([trial(n) for n in range(7)])
    packed(Replay(Curves(str(log)), 0.2), slots=3).run(source)
    assert set(source.endings().values()) == {Ending.COMPLETED}
    assert source.most_running == 6
    firsts = Counter(found[0] for number, found in pids(log).items() if number < 6)
    assert sorted(firsts.values()) == [3, 3]
    assert packed.watch.notices == ["2 engines of 3 slots"]
    assert (len(packed.watch.shared[-1].engines), packed.watch.shared[-1].most) == (2, 3)


def test_an_engine_stays_warm_and_admits_while_others_train(packed: Packed, tmp_path: Path) -> None:
    log = tmp_path / "pids"
    source = Recorder([longer(0), *(trial(n) for n in range(1, 5))])
    packed(Replay(Curves(str(log)), 0.1), engines=1).run(source)
    assert len({pid for found in pids(log).values() for pid in found}) == 1
    ended = [number for number, _ in source.ends]
    assert ended.index(0) > ended.index(1), "trial 2 and later came while trial 0 went on"
    assert source.most_running == 2


def uneven() -> list[TrialSpec]:
    """Two long trials for the first of two engines, two short ones for the second."""
    return [longer(0), trial(1, rungs=()), longer(2), trial(3, rungs=())]


def test_an_engine_that_has_run_dry_takes_a_trial_from_one_with_two(packed: Packed, tmp_path: Path) -> None:
    log = tmp_path / "pids"
    source = Recorder(uneven())
    packed(Replay(Curves(str(log)), 0.5)).run(source)
    assert source.endings() == dict.fromkeys(range(4), Ending.COMPLETED)
    assert len(source.ends) == 4, "the source never heard of the move"
    found = pids(log)
    moved = [number for number in (0, 2) if len(set(found[number])) == 2]
    assert len(moved) == 1
    assert len(set(found[2 - moved[0]])) == 1
    assert found[moved[0]][-1] in found[1], "it went to the engine that had run dry"
    for number in (0, 2):
        assert source.nominals(number) == list(range(10, 110, 10)), "every evaluation was told once"
        spent = [report.train_seconds for report in source.reports if report.trial == number]
        assert spent == sorted(spent), "what it cost before it moved still counts"
        assert dict(source.ends)[number].train_seconds > 4


def test_what_is_decided_while_a_trial_moves_reaches_it_where_it_went(packed: Packed, tmp_path: Path) -> None:
    class Late(Recorder):
        """Stops both long trials, told once, well after the short ones have ended."""

        since: float | None = None

        def decisions(self) -> list[Decision]:
            if self.running == {0, 2} and self.since is None and len(self.given) == 4:
                self.since = time.monotonic()
            if self.since is None or not 1.5 < time.monotonic() - self.since < 3600:
                return []
            self.since = -7200.0
            return [Decision(n, Action.STOP, "no longer wanted") for n in (0, 2)]

    source = Late(uneven())
    packed(SlowToPause(Curves(), 0.5, seconds=4.0)).run(source)
    assert source.endings() == {0: Ending.PRUNED, 1: Ending.COMPLETED, 2: Ending.PRUNED, 3: Ending.COMPLETED}
    assert len(source.ends) == 4


def test_an_engine_that_dies_while_a_trial_leaves_it_loses_neither(packed: Packed, tmp_path: Path) -> None:
    source = GivesBack(uneven())
    packed(SlowToPause(Curves(), 0.5, dies=str(tmp_path / "died"))).run(source)
    assert (tmp_path / "died").exists()
    assert source.endings() == dict.fromkeys(range(4), Ending.COMPLETED)
    back = sorted(number for number, outcome in source.ends if outcome.ending is Ending.PREEMPTED)
    assert back == [0, 2], "both, once"
    assert [source.nominals(number)[-1] for number in range(4)] == [100, 40, 100, 40]


def test_an_engine_that_finds_the_cluster_taken_says_what_it_waits_for(packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeper.executors.fleet.QUEUE_SECONDS", 1.0)

    class Other:
        def here(self) -> None: ...

    other = ray.remote(Other).options(num_cpus=1).remote()
    ray.get(other.here.remote())
    source = Recorder([trial(0)])
    later = threading.Timer(6.0, ray.kill, [other])
    later.start()
    packed(Replay(Curves())).run(source)
    later.join()
    assert source.endings() == {0: Ending.COMPLETED}
    assert any("of 2 engines wait for room" in notice for notice in packed.watch.notices)


def test_a_processor_that_does_not_keep_rows_apart_is_told_of(packed: Packed, tmp_path: Path) -> None:
    packed(Unsteady(), engines=1).run(Recorder([trial(0)]))
    watch = Watching()
    LocalExecutor(setup(tmp_path, slots=2), FolderDepot(tmp_path / "local"), Unsteady(), watch).run(Recorder([trial(0)]))
    for notices in (packed.watch.notices, watch.notices):
        assert sum("within rounding only" in notice for notice in notices) == 1


def test_in_a_fixed_order_no_trial_moves(packed: Packed, tmp_path: Path) -> None:
    log = tmp_path / "pids"
    source = Recorder(uneven())
    packed(Replay(Curves(str(log)), 0.1), deterministic=True).run(source)
    assert {len(set(found)) for found in pids(log).values()} == {1}


def test_a_killed_engine_gives_all_its_trials_back_and_leaves_the_other_alone(packed: Packed, tmp_path: Path) -> None:
    log = tmp_path / "pids"
    killed: list[int] = []

    def answer(source: Recorder, report: Report) -> Action:
        if report.trial == 0 and report.nominal == 30 and not killed:
            killed.append(pids(log)[0][-1])
            os.kill(killed[0], signal.SIGKILL)
        return Action.CONTINUE

    source = GivesBack([longer(n) for n in range(4)], answer)
    packed(Replay(Curves(str(log)), 0.2)).run(source)
    assert source.endings() == dict.fromkeys(range(4), Ending.COMPLETED)
    back = sorted(number for number, outcome in source.ends if outcome.ending is Ending.PREEMPTED)
    assert back == [0, 2], "the neighbour in the same engine, and none of the other"
    assert all("worker died" in outcome.reason for _, outcome in source.ends if outcome.ending is Ending.PREEMPTED)
    for number in (0, 2):
        assert source.given[number].resume_from is not None
        assert source.nominals(number)[-8:] == list(range(30, 110, 10)), "it went on at most two evaluations behind"
    for number in (1, 3):
        assert source.nominals(number) == list(range(10, 110, 10))
    assert "half its room: 1 slots, 256 tokens" in packed.watch.notices[-1]


def test_a_trial_that_kills_every_engine_fails_and_costs_no_other(packed: Packed) -> None:
    source = GivesBack([longer(0), longer(1), longer(2)])
    packed(Replay(Deadly(1), 0.1), engines=1, slots=2).run(source)
    assert source.endings() == {0: Ending.COMPLETED, 1: Ending.FAILED, 2: Ending.COMPLETED}
    assert "with no other trial inside" in [o.reason for n, o in source.ends if n == 1][-1]


def test_an_error_that_no_engine_may_raise_is_as_a_death(packed: Packed) -> None:
    source = GivesBack([trial(0), trial(1)])
    packed(Replay(Faulty(), 0.1), engines=1, slots=1).run(source)
    assert source.endings() == {0: Ending.FAILED, 1: Ending.COMPLETED}
    assert "ZeroDivisionError: a bug in the engine" in [o.reason for n, o in source.ends if n == 0][-1]


def test_an_engine_that_hangs_is_given_up_and_its_trials_come_back(packed: Packed, tmp_path: Path) -> None:
    log = tmp_path / "pids"
    stopped: list[int] = []

    def answer(source: Recorder, report: Report) -> Action:
        if report.trial == 0 and report.nominal == 20 and not stopped:
            stopped.append(pids(log)[0][-1])
            os.kill(stopped[0], signal.SIGSTOP)
        return Action.CONTINUE

    source = GivesBack([longer(0), longer(1)], answer)
    executor = PackedExecutor(
        setup(tmp_path), tmp_path / "home", ExecutorSpec(workers=2), Replay(Curves(str(log)), 0.05), packed.watch, lease=2.0
    )
    executor.run(source)
    assert source.endings() == {0: Ending.COMPLETED, 1: Ending.COMPLETED}
    assert any("it said nothing for" in outcome.reason for _, outcome in source.ends)
    assert not psutil.pid_exists(stopped[0]) or psutil.Process(stopped[0]).status() == psutil.STATUS_ZOMBIE, "it was deaf"


def test_a_lease_counts_no_time_in_which_the_driver_did_not_listen(packed: Packed, tmp_path: Path) -> None:
    def answer(source: Recorder, report: Report) -> Action:
        if report.nominal == 20:
            time.sleep(1.5)
        return Action.CONTINUE

    source = Recorder([trial(0), trial(1)], answer)
    executor = PackedExecutor(
        setup(tmp_path), tmp_path / "home", ExecutorSpec(workers=2), Replay(Curves(), 0.1), packed.watch, lease=1.0
    )
    executor.run(source)
    assert source.endings() == {0: Ending.COMPLETED, 1: Ending.COMPLETED}
    assert not any("lost" in notice for notice in packed.watch.notices)


def test_a_model_that_no_engine_can_use_ends_the_sweep_before_any_trial(packed: Packed) -> None:
    source = Recorder([trial(0), trial(1)])
    with pytest.raises(ModelError, match="has no config"):
        packed(Refusing()).run(source)
    assert source.given == {}


def test_a_full_disk_is_said_in_the_depot_s_own_sentence(packed: Packed) -> None:
    source = Recorder([trial(0), trial(1)])
    with pytest.raises(ResourceError, match=r"^the disk of"):
        packed(FullDisk(), engines=1).run(source)
    assert set(source.endings().values()) == {Ending.PREEMPTED}


def test_engines_that_die_at_their_start_end_the_sweep_with_a_sentence(packed: Packed) -> None:
    source = Recorder([trial(0)])
    with pytest.raises(ResourceError, match=r"every engine died 2 times before it was ready .*executor.memory"):
        packed(Dying(), engines=1).run(source)
    assert source.given == {}


def test_two_deterministic_runs_tell_the_source_the_same_in_the_same_order(packed: Packed) -> None:
    def run() -> list[tuple[str, int | None]]:
        def answer(source: Recorder, report: Report) -> Action:
            return Action.STOP if report.kind is ReportKind.RUNG and report.trial % 3 == 2 else Action.CONTINUE

        source = Recorder([longer(n) if n % 2 else trial(n) for n in range(7)], answer)
        packed(Replay(Curves(), 0.0), deterministic=True).run(source)
        return [(what, number) for _, what, number in source.calls if what != "decisions"]

    first, second = run(), run()
    assert first == second
    assert len({number for what, number in first if what == "on_end"}) == 7


def test_fewer_engines_than_asked_for_are_said(packed: Packed, tmp_path: Path) -> None:
    PackedExecutor(setup(tmp_path), tmp_path / "home", ExecutorSpec(workers=3), Replay(Curves()), packed.watch).run(Recorder([]))
    assert "executor.workers is 3, but the cluster has room for 2" in packed.watch.notices[0]
    fixed = replace(setup(tmp_path), deterministic=True)
    with pytest.raises(ResourceError, match="needs the 3 engines"):
        PackedExecutor(fixed, tmp_path / "home", ExecutorSpec(workers=3), Replay(Curves()), packed.watch).run(Recorder([]))


def test_after_a_death_half_of_all_and_of_a_chunk_where_one_trial_was_alone(tmp_path: Path) -> None:
    given = setup(tmp_path, slots=4)
    given = replace(given, training=given.training.model_copy(update={"chunk_tokens": 300}))
    limits = halved(Limits(), given, Capacity(9, 1000))
    assert limits == Limits(slots=4, micro_tokens=500)
    assert halved(limits, given, Capacity(4, 500)) == Limits(slots=2, micro_tokens=300)
    alone = halved(limits, given, Capacity(1, 500))
    assert alone == Limits(slots=1, micro_tokens=250, chunk_tokens=150)
    assert halved(alone, given, Capacity(1, 250)) == Limits(slots=1, micro_tokens=125, chunk_tokens=75)
    narrow = limited(given, alone)
    assert (narrow.slots, narrow.micro_tokens, narrow.chunk_tokens) == (1, 250, 150)
    shared = limited(given, Limits(share=0.5))
    assert shared.memory is not None, "each of two engines plans with its part, also where slots are given"


def test_engines_of_one_node_map_one_file_that_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"weight": torch.ones(4, 4, dtype=torch.bfloat16)}, folder / "model.safetensors")
    fp32 = TrainingSpec(dtype="fp32")
    given = replace(setup(tmp_path), training=fp32)
    placed = [shared_pages(given, share).model for share in (0.5, 0.5, 1.0)]
    assert placed[0] == placed[1]
    assert Path(placed[0]).is_relative_to(tmp_path / "cache")
    assert load_file(Path(placed[0]) / "model.safetensors")["weight"].dtype == torch.float32
    assert placed[2] == str(folder), "an engine that is alone on its node gains nothing"
    assert shared_pages(replace(given, training=TrainingSpec(dtype="bf16")), 0.5).model == str(folder)


def test_ctrl_c_in_a_terminal_preempts_all_and_leaves_no_process(tmp_path: Path) -> None:
    """Here Ray is the executor's own."""
    check_ctrl_c(tmp_path, "sweeper.executors.packed:PackedExecutor", slots=2, trials=4)
