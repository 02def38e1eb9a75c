"""How trials, results and durations are printed. Knows records and views, not where they came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from sweeper.records import TrialState
from sweeper.study.plan import StudyPlan
from sweeper.study.read import TrialView
from sweeper.sweep.expected import Expected
from sweeper.sweep.forecast.forecast import Range
from sweeper.sweep.query import Status
from sweeper.sweep.result import SweepResult, describe_states

COLOURS = {
    TrialState.WAITING: "cyan",
    TrialState.RUNNING: "bold blue",
    TrialState.PARKED: "blue",
    TrialState.PAUSED: "cyan",
    TrialState.COMPLETE: "green",
    TrialState.PRUNED: "yellow",
    TrialState.FAIL: "red",
}


def number(value: object) -> str:
    """A figure short enough for a table; `-` for None."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1e-3 or abs(value) >= 1e4 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """`42s`, `3m12s`, `2h05m`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def range_text(value: Range, shown: Callable[[float], str]) -> str:
    """`4m10s (80 %: 3m20s - 5m00s)`."""
    return f"{shown(value.mid)} (80 %: {shown(value.low)} - {shown(value.high)})"


def expected_text(expected: Expected) -> str:
    """`forecast 4m10s (80 %: 3m20s - 5m00s), took 4m26s`."""
    took = f", took {duration(expected.took)}" if expected.took is not None else ""
    return f"forecast {range_text(expected.seconds, duration)}{took}"


def trial_table(plan: StudyPlan, trials: Iterable[TrialView], best: TrialView | None) -> Table:
    """One line a trial; the winner is marked."""
    keys = sorted(plan.space)
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    for heading in ("trial", "state", *keys, "examples", *plan.metrics, "seconds"):
        table.add_column(heading, no_wrap=True)
    table.add_column("why", no_wrap=True, overflow="ellipsis", ratio=1)  # takes what room the figures leave
    for trial in trials:
        mark = " *" if best is not None and trial.number == best.number else ""
        table.add_row(
            f"{trial.number}{mark}",
            Text(trial.state, style=COLOURS[trial.state]),
            *(number(trial.params.get(key)) for key in keys),
            str(trial.examples),
            *(number(trial.metrics.get(f"validation/{metric}")) for metric in plan.metrics),
            number(trial.seconds),
            trial.reason,
        )
    return table


def print_result(console: Console, result: SweepResult, flags: str = "") -> None:
    """The end of `sweeper run`: trials, verdict, and where everything lies."""
    console.print()
    console.print(trial_table(result.plan, result.trials, result.best))
    console.print()
    console.print(f"{describe_states(result.states)} in {duration(result.seconds)}", highlight=False)
    if result.shared is not None:
        console.print(result.shared.sentence(len(result.trials)), highlight=False)
    if result.expected is not None:
        console.print(expected_text(result.expected), highlight=False)
    console.print(Text(result.verdict(), style="bold"), soft_wrap=True)
    if result.best is None:
        return
    name = result.study
    lines = [
        (
            "winner",
            f"trial {result.best.number}: " + ", ".join(f"{k}={number(result.best.params[k])}" for k in sorted(result.plan.space)),
        ),
        *([("front", ", ".join(f"trial {trial.number}" for trial in result.front))] if len(result.plan.metrics) > 1 else []),
        ("adapter", str(result.adapter) if result.adapter else "-"),
        ("study", f"{_database(result)}   (optuna-dashboard: sweeper dashboard {name}{flags})"),
        ("tracker", _tracker(result, flags)),
        ("use it", f'sweeper predict {name} "your text"{flags}'),
    ]
    for what, where in lines:
        console.print(f"{what:>8}  {where}", highlight=False, soft_wrap=True, markup=False)


def _tracker(result: SweepResult, flags: str) -> str:
    trackers = result.plan.spec.get("tracking")
    kinds = [str(item["kind"]) for item in trackers if isinstance(item, dict)] if isinstance(trackers, list) else []
    if not kinds:
        return "none"
    hint = f"   (MLflow's page: sweeper mlflow {result.study}{flags})" if "mlflow" in kinds else ""
    return f"{result.tracked or ', '.join(kinds)}{hint}"


def _database(result: SweepResult) -> str:
    from sweeper.spec.identity import mask

    return str(mask(result.storage))


def status_view(now: Status) -> Group:
    """What `sweeper status` draws: one line of state, then the trials."""
    if now.running and now.driver is not None:
        who = f"running (process {now.driver.pid} on {now.driver.host})"
    elif now.trials and all(trial.state.is_finished() for trial in now.trials):
        who = "not running"
    else:
        who = "not running; `sweeper run` with its spec goes on"
    best = f"; best so far: trial {now.best.number}" if now.best is not None else ""
    return Group(
        Text(f"{now.place.study}: {who}", style="bold"),
        Text(f"{describe_states(now.states) or 'no trials yet'}{best}"),
        *([Text(expected_text(now.expected))] if now.expected is not None else []),
        trial_table(now.plan, now.trials, now.best),
    )


def trial_records(trials: Iterable[TrialView]) -> list[dict[str, object]]:
    """Trials as flat records for CSV and JSON: params as `params.x`, metrics by their own names."""
    return [
        {
            "number": trial.number,
            "state": str(trial.state),
            **{f"params.{key}": value for key, value in sorted(trial.params.items())},
            **dict(sorted(trial.metrics.items())),
            "examples": trial.examples,
            "seconds": trial.seconds,
            "attempts": trial.attempts,
            "reason": trial.reason,
            "adapter": trial.adapter or "",
        }
        for trial in trials
    ]
