"""Time left while a sweep runs, from made-up reports: what is known, and when."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sweeper.records import Action, Decision, Report, ReportKind, TrialSpec, TrialState
from sweeper.study.budget import Device
from sweeper.sweep.forecast.estimator import Estimator
from sweeper.sweep.forecast.observed import Observed
from sweeper.sweep.forecast.outlook import History
from sweeper.sweep.forecast.speed import Passes, speed_facts, with_facts
from tests.sweep.test_sweep_forecast import made_plan, made_speed

GO = Decision(0, Action.CONTINUE)


def spec(number: int, batch: int = 8) -> TrialSpec:
    """A trial of 80 examples."""
    plan = made_plan({"trials": 4})
    evaluations, rungs = plan.clock(80)
    return TrialSpec("made-up", number, {"batch_size": batch, "epochs": 1.0}, number, 80, evaluations, rungs)


def report(number: int, examples: int, seconds: float, kind: ReportKind = ReportKind.EVALUATION, rows: int = 10) -> Report:
    """What a trial says after `examples` of ten tokens each that took `seconds`, and an evaluation of 0.1 s."""
    return Report(
        trial=number,
        kind=kind,
        nominal=examples,
        examples=examples,
        step=examples // 8,
        time_ms=0,
        rows=rows if kind is not ReportKind.PROGRESS else 0,
        train_seconds=seconds,
        evaluate_seconds=0.1,
        tokens=examples * 10,
        worker=f"w{number}",
    )


def estimator(history: History | None = None, source: str = "", engines: int = 1) -> Estimator:
    plan = made_plan({"trials": 4})
    return Estimator(plan, made_speed(engines=engines), history or History(), Observed(), Device(1, "core"), source)


def test_nothing_is_said_before_anything_is_known() -> None:
    asked = estimator()
    asked.started(spec(0))
    assert asked.make_first() is None
    assert asked.left() is None
    asked.reported(report(0, 4, 0.4, ReportKind.PROGRESS), GO)
    assert asked.make_first() is None


def test_the_first_forecast_waits_until_every_running_trial_was_evaluated() -> None:
    asked = estimator(engines=2)
    asked.started(spec(0))
    asked.started(spec(1))
    asked.reported(report(0, 8, 0.8), GO)
    assert asked.make_first() is None
    asked.reported(report(1, 8, 0.8), GO)
    first = asked.make_first()
    assert first is not None
    assert first.source == "reports"
    # 4 trials of 80 examples at 0.1 s a piece, 8 short and 2 whole evaluations each; two engines, a tenth of two trials gone
    whole = (4 * (8.0 + 8 * 0.1 + 2 * 0.4) - 2 * 0.9) / 2
    assert first.seconds.holds(whole)
    assert asked.make_first() is None


def test_a_speed_from_a_probe_gives_a_forecast_at_once() -> None:
    asked = estimator(source="probe")
    first = asked.make_first()
    assert first is not None
    assert (first.source, round(first.after)) == ("probe", 0)
    assert first.seconds.mid == pytest.approx(4 * 0.8, rel=0.01)
    left = asked.left()
    assert left is not None
    assert left.mid <= first.seconds.mid


def test_what_has_ended_is_not_forecast_again() -> None:
    asked = estimator()
    for number in range(3):
        asked.started(spec(number))
        asked.reported(report(number, 80, 8.0), GO)
        asked.ended(number, TrialState.COMPLETE)
    asked.started(spec(3))
    asked.reported(report(3, 40, 4.0), GO)
    asked.make_first()
    left = asked.left()
    assert left is not None
    assert left.mid == pytest.approx(4.0 + 4 * 0.1 + 0.4, rel=0.1)


def test_interrupted_trials_are_still_to_come() -> None:
    asked = estimator()
    asked.started(spec(0))
    asked.reported(report(0, 40, 4.0), GO)
    asked.ended(0, TrialState.WAITING)
    first = asked.make_first()
    assert first is not None
    assert first.seconds.holds(4.0 + 3 * 8.0 + 4 * 1.2)


def test_each_batch_size_is_a_point_where_a_trial_has_an_engine_to_itself() -> None:
    seen = Observed()
    seen.trained(8, 1.0, 800)
    seen.trained(16, 1.5, 1600)
    speed = seen.speed(made_speed())
    assert isinstance(speed.passes, Passes)
    assert speed.passes.points == ((80, pytest.approx(0.1)), (160, pytest.approx(0.15)))
    shared = seen.speed(made_speed(slots=4))
    assert shared.passes.seconds(240) == pytest.approx(0.25)


def test_resumed_stays_count_their_own_costs() -> None:
    seen = Observed()
    seen.note(spec(0), report(0, 40, 4.0))
    seen.note(spec(0), replace(report(0, 80, 4.0), attempt=1, tokens=400))
    speed = seen.speed(made_speed())
    assert speed.passes.seconds(80) == pytest.approx(0.8)


def test_what_was_probed_is_kept_and_read_again() -> None:
    speed = made_speed(slots=3, micro_tokens=512, read_seconds=0.25, turn_seconds=0.5, start_seconds=7.0)
    again = with_facts(made_speed(), speed_facts(speed))
    assert again is not None
    assert (again.slots, again.micro_tokens, again.read_seconds, again.start_seconds) == (3, 512, 0.25, 7.0)
    assert again.passes.seconds(80) == pytest.approx(0.08)
    assert with_facts(made_speed(), {"points": []}) is None
    assert with_facts(made_speed(), {}) is None


def test_only_decisions_with_a_cut_off_tell_how_many_a_rung_keeps() -> None:
    asked = estimator(engines=2)
    for number in range(3):
        asked.started(spec(number))
    too_few = Decision(1, Action.CONTINUE, "too few to judge", {"pruner": "halving", "cutoff": None})
    stopped = Decision(2, Action.STOP, "not among the best", {"pruner": "halving", "cutoff": 0.5})
    for number, decision in enumerate((GO, too_few, stopped)):
        asked.reported(report(number, 8, 0.8, ReportKind.RUNG), decision)
    history = asked._now()
    assert history.reached == {8: 3}
    assert history.judged == {8: (0, 1)}
