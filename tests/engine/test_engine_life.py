"""A trial's life in the engine: clocks, decisions, checkpoints, endings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from sweeper.engine.outcomes import from_parquet
from sweeper.errors import ModelError, TrialError
from sweeper.records import Action, Decision, Ending, Report, ReportKind
from tests.engine.engine_world import PARAMS, Story, World, drive, trial

HARD = {"dropout": 0.1, "label_smoothing": 0.1, "batch_size": 5}


def pause_at_rung(report: Report) -> Action:
    return Action.PAUSE if report.kind is ReportKind.RUNG else Action.CONTINUE


def adapter(world: World, story: Story, number: int = 0) -> dict[str, bytes]:
    return world.depot.get(story.ends[number].adapter or "")


def test_evaluations_come_at_the_first_step_past_their_number(world: World) -> None:
    story = drive(world.engine(), [trial(batch_size=6, rungs=(32,))])
    assert [(nominal, examples) for nominal, examples, _ in story.values(0)] == [(16, 18), (32, 36), (48, 48), (64, 66), (80, 80)]
    kinds = {r.nominal: r.kind for r in story.reports if r.kind is not ReportKind.PROGRESS}
    assert kinds == {n: ReportKind.RUNG if n == 32 else ReportKind.EVALUATION for n in (16, 32, 48, 64, 80)}
    assert story.ends[0].ending is Ending.COMPLETED
    assert story.ends[0].examples == 80


def test_a_report_carries_metrics_outcomes_and_counts(world: World) -> None:
    story = drive(world.engine(), [trial()])
    report = next(r for r in story.reports if r.nominal == 80)
    wanted = {"train/loss", "train/learning_rate", "train/grad_norm", "validation/loss", "validation/accuracy"}
    assert set(report.metrics) == wanted
    assert report.step == 20
    assert report.rows == 24
    rows = from_parquet(world.depot.get(report.outcomes or "")["rows.parquet"])
    assert rows.row_ids == world.validation.row_ids()
    assert report.metrics["validation/loss"] == pytest.approx(rows.loss_sum.sum() / rows.tokens.sum())
    labels = [world.validation.row(i).label for i in range(24)]
    assert report.metrics["validation/accuracy"] == pytest.approx(np.mean(rows.classes() == np.array(labels)))


def test_several_numbers_passed_in_one_step_are_all_reported(world: World) -> None:
    story = drive(world.engine(), [trial(batch_size=40, rungs=(32,))])
    assert [(n, e) for n, e, _ in story.values(0)] == [(16, 40), (32, 40), (48, 80), (64, 80), (80, 80)]
    assert (story.ends[0].ending, story.ends[0].nominal) == (Ending.COMPLETED, 80)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_same_trial_gives_the_same_bits_twice(world: World, method: str) -> None:
    changes = {"training": {"method": method}}
    spec = trial(**HARD, learning_rate=1e-2 if method == "lora" else 1e-3)
    first, second = (drive(world.engine(**changes), [spec]) for _ in range(2))
    assert first.values(0) == second.values(0)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_pausing_at_a_rung_equals_never_having_paused(make_world: Callable[..., World], family: str, method: str) -> None:
    world = make_world(family)
    changes = {"training": {"method": method}}
    spec = trial(rungs=(32,), **HARD, learning_rate=1e-2 if method == "lora" else 1e-3)
    whole = drive(world.engine(**changes), [spec])
    weights = adapter(world, whole)

    first = drive(world.engine(**changes), [spec], pause_at_rung)
    assert first.ends[0].ending is Ending.PAUSED
    second = drive(world.engine(**changes), [replace(spec, resume_from=first.ends[0].checkpoint, attempt=1)])
    assert first.values(0) + second.values(0) == whole.values(0)
    assert adapter(world, second) == weights


def test_preempting_anywhere_equals_never_having_stopped(world: World) -> None:
    spec = trial(rungs=(32,), **HARD)
    whole = drive(world.engine(), [spec])
    for pieces in (1, 6, 13):
        engine = world.engine()
        seen = 0

        def stop(story: Story, limit: int = pieces) -> bool:
            nonlocal seen
            seen += 1
            return seen > limit

        first = drive(engine, [spec], until=stop)
        (ended,) = engine.preempt()
        assert ended.outcome.ending is Ending.PREEMPTED
        assert engine.available() == 1
        second = drive(world.engine(), [replace(spec, resume_from=ended.outcome.checkpoint)])
        assert first.values(0) + second.values(0) == whole.values(0)


def test_a_parked_trial_waits_for_its_decision_and_reports_again_after_preemption(world: World) -> None:
    spec = trial(rungs=(32,))
    engine = world.engine()
    story = drive(engine, [spec], lambda report: Action.LATER, until=lambda s: any(r.kind is ReportKind.RUNG for r in s.reports))
    assert engine.trials() == [0]
    assert engine.step() == []
    rung = story.reports[-1]
    assert rung.checkpoint == "checkpoints/s/0/32"
    assert engine.decide(Decision(0, Action.LATER)) == []
    assert engine.step() == []

    (ended,) = engine.preempt()
    assert ended.outcome.checkpoint == rung.checkpoint
    again = drive(world.engine(), [replace(spec, resume_from=rung.checkpoint)])
    assert again.values(0)[0] == (32, 32, dict(rung.metrics))

    engine = world.engine()
    drive(engine, [spec], lambda report: Action.LATER, until=lambda s: any(r.kind is ReportKind.RUNG for r in s.reports))
    assert engine.decide(Decision(0, Action.CONTINUE)) == []
    assert drive(engine, []).ends[0].ending is Ending.COMPLETED


def test_stop_ends_a_trial_as_pruned_with_its_last_values(world: World) -> None:
    story = drive(world.engine(), [trial(rungs=(32,))], lambda r: Action.STOP if r.kind is ReportKind.RUNG else Action.CONTINUE)
    end = story.ends[0]
    assert (end.ending, end.reason, end.nominal, end.examples, end.adapter) == (Ending.PRUNED, "asked", 32, 32, None)
    assert end.metrics == {k: v for k, v in story.values(0)[-1][2].items() if k.startswith("validation/")}


def test_the_checkpoint_clock_writes_and_keeps_two(world: World) -> None:
    story = drive(world.engine(checkpoint_seconds=0.0), [trial(every=80)])
    written = [r.checkpoint for r in story.reports if r.checkpoint]
    assert written[:3] == ["checkpoints/s/0/4", "checkpoints/s/0/8", "checkpoints/s/0/12"]
    for name in written[:-2]:
        with pytest.raises(FileNotFoundError):
            world.depot.get(name)
    assert set(world.depot.get(written[-1])) == {"state.json", "state.safetensors"}


def test_a_diverged_trial_fails_with_its_reason_and_the_engine_goes_on(world: World) -> None:
    engine = world.engine()
    story = drive(engine, [trial(0, learning_rate=1e4, clip=0.0, schedule="constant", warmup=0.0), trial(1)])
    assert story.ends[0].ending is Ending.FAILED
    assert "loss" in story.ends[0].reason
    assert story.ends[1].ending is Ending.COMPLETED
    alone = drive(world.engine(), [trial(1)])
    assert story.values(1) == alone.values(1)


def test_nan_weights_fail_the_trial_before_anything_is_kept(world: World) -> None:
    engine = world.engine()
    engine.admit(trial(rungs=(16,)))
    engine._running[0].row.weights.fill_(torch.nan)
    story = drive(engine, [])
    assert story.ends[0].ending is Ending.FAILED
    assert "nan" in story.ends[0].reason
    assert story.ends[0].checkpoint is None
    with pytest.raises(FileNotFoundError):
        world.depot.get("checkpoints/s/0/16")


def test_at_best_exports_the_best_evaluation(world: World) -> None:
    spec = trial(learning_rate=3e-2, schedule="constant")
    story = drive(world.engine(at="best", objective="loss", maximize=False), [spec])
    losses = {nominal: metrics["validation/loss"] for nominal, _, metrics in story.values(0)}
    best = min(losses, key=lambda nominal: losses[nominal])
    assert best != 80, "the last evaluation is the best, so this shows nothing"
    assert story.ends[0].nominal == best
    assert story.ends[0].metrics["validation/loss"] == losses[best]
    short = drive(world.engine(), [trial(learning_rate=3e-2, schedule="constant", examples=best)])
    assert adapter(world, story) == adapter(world, short)


def test_a_damaged_or_foreign_checkpoint_is_refused_in_a_sentence(world: World) -> None:
    spec = trial(rungs=(32,))
    name = drive(world.engine(), [spec], pause_at_rung).ends[0].checkpoint or ""
    with pytest.raises(TrialError, match="another configuration"):
        world.engine().admit(replace(spec, params={**PARAMS, "rank": 8}, resume_from=name))
    files = world.depot.get(name)
    files["state.safetensors"] = files["state.safetensors"][:-1] + b"x"
    world.depot.put(name, files)
    with pytest.raises(TrialError, match="damaged"):
        world.engine().admit(replace(spec, resume_from=name))
    with pytest.raises(TrialError, match="not there"):
        world.engine().admit(replace(spec, resume_from="checkpoints/s/0/7"))


def test_a_configuration_that_cannot_be_trained_names_every_problem(world: World) -> None:
    engine = world.engine()
    with pytest.raises(TrialError, match=r"rank is 1\.5.*schedule is missing"):
        engine.admit(replace(trial(), params={**PARAMS, "rank": 1.5, "schedule": None}))
    with pytest.raises(TrialError, match=r"no layer for 'q_prj'; did you mean 'q_proj'"):
        engine.admit(trial(targets="q_prj"))
    assert engine.available() == 1


def test_several_slots_are_refused_where_a_trial_needs_the_model_for_itself(world: World) -> None:
    with pytest.raises(ModelError, match="2 slots were asked for"):
        world.engine(slots=2, training={"method": "full"})


def test_gradient_checkpointing_changes_no_bit(world: World) -> None:
    spec = trial(dropout=0.2)
    plain = drive(world.engine(), [spec])
    recomputed = drive(world.engine(training={"gradient_checkpointing": True}), [spec])
    assert plain.values(0) == recomputed.values(0)


def test_chunks_change_the_loss_by_rounding_only(world: World) -> None:
    small, large = (drive(world.engine(training={"chunk_tokens": size}), [trial()]) for size in (16, 4096))
    for (_, _, a), (_, _, b) in zip(small.values(0), large.values(0), strict=True):
        assert a["validation/loss"] == pytest.approx(b["validation/loss"], abs=1e-4)


@pytest.mark.parametrize(("method", "rate"), [("lora", 1e-2), ("full", 1e-3)])
def test_bf16_trains_much_as_fp32_does(world: World, method: str, rate: float) -> None:
    losses = []
    for dtype in ("fp32", "bf16"):
        story = drive(world.engine(training={"dtype": dtype, "method": method}), [trial(learning_rate=rate, every=80)])
        losses.append(story.ends[0].metrics["validation/loss"])
    assert losses[1] == pytest.approx(losses[0], abs=0.1)
