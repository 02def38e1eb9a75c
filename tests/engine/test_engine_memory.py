"""Running out of memory never fails a trial that fits in smaller pieces. The limit is a real one: a process's address space, or
its share of a GPU where there is one."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sweeper.data.tokens import TokenRow
from sweeper.engine.batch import Batches
from sweeper.engine.engine import TrialEngine
from sweeper.engine.memory import ran_out
from sweeper.engine.optimizer import Row
from sweeper.engine.packed import Chunk, LabelIds, Prompts
from sweeper.engine.params import Params
from sweeper.executors import base as executors
from sweeper.records import Action, Ending, ReportKind
from tests.contracts.executor import GivesBack
from tests.engine.engine_world import VOCAB, World, drive, trial, write_rows

Folder = Callable[[str], Path]
ROOT = Path(__file__).parents[2]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SCRIPT = """
import json, resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.engine.engine_world import World, drive, trial
root, model, method, device, slots, batch = Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:5], *map(int, sys.argv[5:])
def limit(room):
    if device == "cuda":
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + room) / total if room else 1.0)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + room if room else most, most))
world = World(root, model, "instruct")
def engine(chunk_tokens, slots):
    training = {"method": method, "chunk_tokens": chunk_tokens, "max_length": 200}
    return world.engine(train=root / "long", validation=root / "long", training=training, slots=slots, device=device)
drive(engine(256, 1), [trial(9, examples=4, every=4)])
for room in (5 * 2**20, None):
    tried = engine(12800, slots)
    for i in range(slots):
        tried.admit(trial(i, examples=128, every=128, batch_size=batch, learning_rate=1e-3, seed=i))
    limit(room)
    story = drive(tried, [])
    limit(None)
    print(json.dumps([[story.ends[i].ending.value, story.ends[i].reason, story.values(i)] for i in range(slots)]))
    print("that was", "tight" if room else "free", file=sys.stderr)
"""


def write_long_rows(root: Path) -> None:
    """96 rows of 200 tokens: training 64 of them at once takes about 70 MB."""
    rng = np.random.default_rng(3)
    target = np.arange(200) >= 190
    write_rows(root / "long", [TokenRow(rng.integers(20, VOCAB, 200).astype(np.int32), target, 190, -1) for _ in range(96)], "text")


def train(root: Path, model: Path, method: str, slots: int, batch: int, device: str = "cpu") -> tuple[list[Any], list[Any], str]:
    """(ending, reason, evaluations) of each trial with 5 MB left beside the model, the same without a limit, and the log."""
    write_long_rows(root)
    command = [sys.executable, "-c", SCRIPT, str(root), str(model), method, device, str(slots), str(batch)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    tight, free = (json.loads(line) for line in done.stdout.strip().splitlines()[-2:])
    said, _, after = done.stderr.partition("that was tight")
    assert "ran out of memory" not in after
    return tight, free, said


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_chunk_that_does_not_fit_alone_is_cut_and_that_is_recorded(tmp_path: Path, tiny_folder: Folder, method: str) -> None:
    (tight,), (free,), said = train(tmp_path, tiny_folder("llama"), method, 1, 64)
    assert free[:2] == tight[:2] == ["completed", ""]
    assert "trial 0 ran out of memory in training" in said
    ((*_, metrics),), ((*_, expected),) = tight[2], free[2]
    assert metrics["validation/loss"] == pytest.approx(expected["validation/loss"], abs=1e-5)
    assert metrics["train/loss"] == pytest.approx(expected["train/loss"], abs=1e-5)
    assert metrics["train/chunk_tokens"] <= 6400
    assert "train/chunk_tokens" not in expected


@pytest.mark.parametrize("device", DEVICES)
def test_trials_that_do_not_fit_together_are_trained_one_by_one(tmp_path: Path, tiny_folder: Folder, device: str) -> None:
    """With equal bits on the CPU; on a GPU within rounding."""
    tight, free, said = train(tmp_path, tiny_folder("llama"), "lora", 3, 20, device)
    assert "ran out of memory in training" in said
    if device == "cpu":
        assert tight == free
    for (_, _, mine), (_, _, other) in zip(tight, free, strict=True):
        assert [m["validation/loss"] for *_, m in mine] == pytest.approx([m["validation/loss"] for *_, m in other], abs=1e-4)
    assert [ending for ending, _, _ in tight] == ["completed"] * 3


def test_a_row_that_does_not_fit_alone_ends_its_trial_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = world.engine(slots=2)
    whole = engine._net.train

    def small(chunks: Sequence[Chunk]) -> list[float]:
        if sum(len(row.ids) for chunk in chunks for row in chunk.rows) > 19:
            raise torch.OutOfMemoryError("out of memory")
        return whole(chunks)

    monkeypatch.setattr(engine._net, "train", small)
    short_rows = next(
        spec
        for spec in (trial(1, examples=4, batch_size=2, seed=seed) for seed in range(500))
        if all(world.train.length(row) <= 19 for seen in (0, 2) for row in Batches(world.train, spec.seed, 2, 4, 64).at(seen).rows)
    )
    with_long = trial(0, examples=32, batch_size=16, seed=1)
    story = drive(engine, [with_long, short_rows])
    assert story.ends[0].ending is Ending.FAILED
    assert "on a single row" in story.ends[0].reason
    assert story.ends[1].ending is Ending.COMPLETED
    assert engine.available() == 2


def test_chunks_cut_for_memory_stay_cut_where_the_trial_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paused, and gone on in another engine, which would have had room: the numbers of one that was never paused."""
    spec = trial(0, examples=32, batch_size=8, dropout=0.1, rungs=(16,))

    def short() -> TrialEngine:
        engine = world.engine(training={"chunk_tokens": 512})
        whole, failed = engine._net.train, [False]

        def once(chunks: Sequence[Chunk]) -> list[float]:
            if not failed[0]:
                failed[0] = True
                raise torch.OutOfMemoryError("out of memory")
            return whole(chunks)

        monkeypatch.setattr(engine._net, "train", once)
        return engine

    never = drive(short(), [spec])
    paused = drive(short(), [spec], answer=lambda report: Action.PAUSE if report.kind is ReportKind.RUNG else Action.CONTINUE)
    assert paused.ends[0].ending is Ending.PAUSED
    rest = drive(world.engine(training={"chunk_tokens": 512}), [replace(spec, resume_from=paused.ends[0].checkpoint)])
    whole = [report.metrics for report in never.reports if report.kind is not ReportKind.PROGRESS]
    parts = [report.metrics for report in (*paused.reports, *rest.reports) if report.kind is not ReportKind.PROGRESS]
    assert parts == whole
    assert {metrics["train/chunk_tokens"] for metrics in whole} == {whole[0]["train/chunk_tokens"]}
    assert whole[0]["train/chunk_tokens"] < 512


def test_a_trial_that_memory_has_no_room_for_waits_for_the_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the `local` executor drives an engine whose third slot was one too many."""
    engine = world.engine(slots=3)
    place = engine._net.place

    def two(slot: int, params: Params, seed: int) -> Row:
        if len(engine.trials()) == 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
        return place(slot, params, seed)

    monkeypatch.setattr(engine._net, "place", two)
    source = GivesBack([trial(number, examples=16, seed=number) for number in range(4)])
    executors.drive(engine, source)
    assert source.endings() == dict.fromkeys(range(4), Ending.COMPLETED)
    assert [number for number, outcome in source.ends if outcome.ending is Ending.PREEMPTED] == [2]
    assert engine.available() == 3


def test_what_is_written_is_written_again_once_memory_was_let_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = world.engine()
    export, failed = engine._net.export, [False]

    def once(slot: int) -> Mapping[str, bytes]:
        if not failed[0]:
            failed[0] = True
            raise torch.OutOfMemoryError("out of memory")
        return export(slot)

    monkeypatch.setattr(engine._net, "export", once)
    story = drive(engine, [trial(0, examples=16)])
    assert failed[0]
    assert story.ends[0].ending is Ending.COMPLETED


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("unable to mmap 4096 bytes: Cannot allocate memory (12)"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_what_says_that_memory_did_not_suffice(error: Exception, is_memory: bool) -> None:
    assert ran_out(error) is is_memory


def test_an_evaluation_that_does_not_fit_is_read_in_halves(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = trial(examples=16)
    plain = drive(world.engine(), [spec])
    engine = world.engine()
    whole = engine._net.score

    def small(asked: Sequence[tuple[int, Prompts]], labels: LabelIds) -> Any:
        if sum(len(prompts) for _, prompts in asked) > 1:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
        return whole(asked, labels)

    monkeypatch.setattr(engine._net, "score", small)
    story = drive(engine, [spec])
    assert story.ends[0].metrics["validation/loss"] == pytest.approx(plain.ends[0].metrics["validation/loss"], abs=1e-5)


LIMITED = """
import json, resource
from pathlib import Path
from sweeper.engine.room import free_bytes
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
before = free_bytes("cpu")
resource.setrlimit(resource.RLIMIT_AS, (used + 50 * 2**20, -1))
print(json.dumps([before, free_bytes("cpu")]))
"""


def test_what_is_free_keeps_to_the_limits_of_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = json.loads(done.stdout)
    assert 30 << 20 < after <= 50 << 20 < before
