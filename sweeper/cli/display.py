"""The live display of a running sweep: a table of trials on a terminal, one line an event elsewhere.

Purpose: show which trials run, at which rung they are, the best so far and the time left.
Does not know how trials run. Cost: redrawn at most four times a second.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeper.cli.tables import COLOURS, duration, number
from sweeper.records import Action, Decision, Outcome, Report, ReportKind, TrialSpec, TrialState
from sweeper.study.plan import StudyPlan
from sweeper.sweep.forecast.estimator import Estimator

MOST_ROWS = 24
"""Trials shown at once: those running, then the latest ended."""

NOTICES = 4


@dataclass
class _Line:
    spec: TrialSpec
    state: TrialState = TrialState.RUNNING
    examples: int = 0
    metric: float | None = None
    loss: float | None = None
    rungs: int = 0
    reason: str = ""
    touched: float = field(default_factory=time.monotonic)


class Display:
    """A Listener that draws. On a terminal it owns the screen's last lines between `begin` and `finish`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._plan: StudyPlan | None = None
        self._lines: dict[int, _Line] = {}
        self._notices: list[str] = []
        self._done = 0
        self._began = time.monotonic()
        self._best: tuple[float, int] | None = None
        self._estimator: Estimator | None = None
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._phase = ""
        self._phase_said = 0.0
        self._lock = threading.Lock()

    # -- Listener -------------------------------------------------------------------------------------------------

    def notice(self, text: str) -> None:
        """A sentence: kept above the table on a terminal, printed elsewhere."""
        self._notices.append(text)
        self._console.print(f"note: {text}", highlight=False, soft_wrap=True, markup=False)

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Set-up work: a bar on a terminal; elsewhere a line when the work changes or ends, and every ten seconds between."""
        if self._console.is_terminal:
            self._bar_for(what, done, total)
            return
        now = time.monotonic()
        ended = total is not None and done >= total
        if what == self._phase and now - self._phase_said < 10 and not ended:
            return
        self._phase, self._phase_said = what, now
        share = f" {done:,} of {total:,}" if total else (f" {done:,}" if done else "")
        self._console.print(f"preparing: {what}{share}", highlight=False, markup=False)

    def begin(self, plan: StudyPlan, finished: int, best: tuple[int, float] | None) -> None:
        """Starts drawing."""
        self._best = (best[1], best[0]) if best is not None else None
        self._close_bar()
        self._plan, self._done, self._began = plan, finished, time.monotonic()
        total = plan.search.trials
        if finished:
            self._console.print(f"study {plan.name}: {finished} trials finished before", highlight=False, markup=False)
        if self._console.is_terminal and (total is None or finished < total):
            self._live = Live(get_renderable=self.picture, console=self._console, refresh_per_second=4, transient=False)
            self._live.start()

    def expecting(self, estimator: Estimator) -> None:
        """Whom to ask for the time left."""
        self._estimator = estimator

    def started(self, trial: TrialSpec) -> None:
        """A trial begins, or goes on."""
        with self._lock:
            self._lines[trial.number] = _Line(trial)
        settings = ", ".join(f"{key}={number(trial.params.get(key))}" for key in self._searched())
        self._say(f"trial {trial.number} {'goes on' if trial.resume_from else 'starts'}: {settings or 'the default configuration'}")

    def reported(self, report: Report, decision: Decision) -> None:
        """A report: moves the bar; evaluations are told."""
        line = self._lines.get(report.trial)
        if line is None or self._plan is None:
            return
        line.examples, line.touched = report.examples, time.monotonic()
        line.loss = report.metrics.get("train/loss", line.loss)
        if report.kind is ReportKind.PROGRESS:
            return
        name = self._plan.metrics[0]
        line.metric = report.metrics.get(f"validation/{name}", line.metric)
        if report.kind is ReportKind.RUNG:
            line.rungs += 1
        if decision.action is not Action.CONTINUE:
            line.reason = decision.reason
        mark = " at a rung" if report.kind is ReportKind.RUNG else ""
        self._say(f"trial {report.trial} at {report.nominal} of {line.spec.examples} examples{mark}: {name} {number(line.metric)}")

    def ended(self, trial: int, outcome: Outcome, state: TrialState) -> None:
        """A trial left its slot."""
        line = self._lines.get(trial)
        if line is None or self._plan is None:
            return
        line.state, line.reason, line.touched = state, outcome.reason, time.monotonic()
        self._done += state.is_finished()
        value = outcome.metrics.get(f"validation/{self._plan.metrics[0]}")
        if state is TrialState.COMPLETE and value is not None:
            line.metric = value
            sign = 1.0 if self._plan.directions[0] == "maximize" else -1.0
            if self._best is None or sign * value > sign * self._best[0]:
                self._best = (value, trial)
        shown = f" {self._plan.metrics[0]} {number(line.metric)}" if line.metric is not None else ""
        self._say(f"trial {trial} {state}{shown}{': ' + outcome.reason if outcome.reason else ''}")

    def finish(self) -> None:
        """Leaves the last picture on the screen."""
        self._close_bar()
        if self._live is not None:
            self._live.refresh()
            self._live.stop()
            self._live = None

    def pretend_begun(self, seconds: float) -> None:
        """Sets the clock to `seconds` after the beginning: for a picture of a sweep that ran at another time."""
        self._began = time.monotonic() - seconds

    # -- drawing --------------------------------------------------------------------------------------------------

    def _bar_for(self, what: str, done: int, total: int | None) -> None:
        if self._bar is None:
            columns = ("preparing:", TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
        if what != self._phase:
            self._phase, self._task = what, self._bar.add_task(what, total=None)
        self._bar.update(self._task, completed=done, total=total)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _say(self, text: str) -> None:
        if self._live is None:
            at = duration(time.monotonic() - self._began)
            self._console.print(f"[{at}] {text}", highlight=False, markup=False, soft_wrap=True)

    def _searched(self) -> list[str]:
        return sorted(self._plan.space) if self._plan is not None else []

    def picture(self) -> RenderableType:
        """What is on the screen now: a headline and a line a trial."""
        assert self._plan is not None
        with self._lock:
            lines = sorted(self._lines.values(), key=lambda line: (line.state.is_finished(), -line.touched))[:MOST_ROWS]
        best = self._best[1] if self._best is not None else None
        table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
        for heading in ("trial", "state", *self._searched(), "examples", "", "rungs", self._plan.metrics[0], "train loss"):
            table.add_column(heading, no_wrap=True)
        table.add_column("why", no_wrap=True, overflow="ellipsis", ratio=1)  # takes what room the figures leave
        for line in sorted(lines, key=lambda line: line.spec.number):
            colour = COLOURS[line.state]
            table.add_row(
                f"{line.spec.number}{' *' if best == line.spec.number else ''}",
                Text(line.state, style=colour),
                *(number(line.spec.params.get(key)) for key in self._searched()),
                f"{line.examples}/{line.spec.examples}",
                ProgressBar(total=line.spec.examples, completed=line.examples, width=12),
                f"{line.rungs}/{len(line.spec.rungs)}",
                number(line.metric),
                number(line.loss),
                line.reason,
            )
        return Group(self._headline(), table)

    def _headline(self) -> Text:
        assert self._plan is not None
        total = self._plan.search.trials
        elapsed = time.monotonic() - self._began
        best = (
            f"best {self._plan.metrics[0]} {self._best[0]:.4g} (trial {self._best[1]})" if self._best else "nothing completed yet"
        )
        left = self._estimator.left() if self._estimator is not None else None
        ahead = f", about {duration(left.mid)} left ({duration(left.low)} - {duration(left.high)})" if left is not None else ""
        return Text(
            f"{self._plan.name}: {self._done} of {total or '?'} trials, {best}, {duration(elapsed)} gone{ahead}", style="bold"
        )
