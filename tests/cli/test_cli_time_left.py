"""The live display tells the time left, from the forecast of what its trials really take."""

from __future__ import annotations

import re

from rich.console import Console

from sweeper.cli.display import Display
from sweeper.cli.tables import expected_text
from sweeper.records import Action, Decision, Report, ReportKind, TrialSpec
from sweeper.study.budget import Device
from sweeper.sweep.expected import Expected, expected
from sweeper.sweep.forecast.estimator import Estimator
from sweeper.sweep.forecast.forecast import Range
from sweeper.sweep.forecast.observed import Observed
from sweeper.sweep.forecast.outlook import History
from tests.sweep.test_sweep_forecast import made_plan, made_speed


def drawn(display: Display, console: Console) -> str:
    """The display's picture as text."""
    with console.capture() as captured:
        console.print(display.picture())
    return captured.get()


def test_the_headline_says_how_long_it_will_take_once_that_is_known() -> None:
    console = Console(width=150)
    plan = made_plan({"trials": 4})
    estimator = Estimator(plan, made_speed(), History(), Observed(), Device(1, "core"))
    display = Display(console)
    display.begin(plan, 0, None)
    display.expecting(estimator)
    trial = TrialSpec("made-up", 0, {"batch_size": 8, "epochs": 1.0, "learning_rate": 1e-3}, 0, 80, *plan.clock(80))
    for one in (estimator, display):
        one.started(trial)
    assert "left" not in drawn(display, console)
    report = Report(0, ReportKind.EVALUATION, 8, 8, 1, 0, rows=10, train_seconds=4.0, evaluate_seconds=0.1, tokens=80, worker="w")
    for listener in (estimator, display):
        listener.reported(report, Decision(0, Action.CONTINUE))
    assert estimator.make_first() is not None
    assert re.search(r"about 2m\d\ds left \(\d+m?\d*s - \d+m?\d*s\)", drawn(display, console))


def test_a_forecast_stands_beside_the_truth() -> None:
    seconds = Range(200, 250, 300)
    assert expected_text(Expected(seconds, 1.0, "probe", 266)) == "forecast 4m10s (80 %: 3m20s - 5m00s), took 4m26s"
    assert expected_text(Expected(seconds, 1.0, "probe")) == "forecast 4m10s (80 %: 3m20s - 5m00s)"


def test_the_last_run_of_a_study_counts() -> None:
    def told(term: int, mid: float) -> dict[str, object]:
        return {"seconds": {"low": 1, "mid": mid, "high": 90}, "after": 2.0, "source": "reports", "term": term}

    truths = [{"seconds": 12.0, "term": 1}]
    assert expected([told(1, 10), told(2, 20)], truths) == Expected(Range(1, 20, 90), 2.0, "reports", None)
    assert expected([told(1, 10)], truths) == Expected(Range(1, 10, 90), 2.0, "reports", 12.0)
    assert expected([], truths) is None
