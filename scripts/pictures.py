"""Pictures of what people look at, for the README and for tests.

Purpose: MLflow's page of an experiment with the sweep's run unfolded, taken by a real browser: a PNG file and the names of the
runs in order; and the live display of a sweep as it was at a moment, drawn again from its study: an SVG file.
Does not know: how the runs came there. The page needs playwright and Chromium (`CHROMIUM`, default /usr/bin/chromium).
Cost: about 10 s a page, a second for the live display.

    python scripts/pictures.py mlflow http://127.0.0.1:5000 demo .readme/mlflow.png final/accuracy learning_rate
    python scripts/pictures.py live sqlite:///sweeps/study.db demo .readme/live.svg 8
"""

from __future__ import annotations

import io
import json
import os
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

_NAME_CELL = "[role=gridcell][col-id='attributes.`Run Name`']"
_OWN_COLUMNS = ("Dataset", "Source", "Models")
_WAIT_MS = 30_000


def mlflow_tree(uri: str, experiment: str, picture: Path, children: int = 1, columns: Sequence[str] = ()) -> list[str]:
    """Takes a picture of an experiment's runs with its sweep unfolded.

    Args:
        uri: address of an MLflow server.
        experiment: name of the experiment.
        picture: PNG file to write.
        children: rows of trials to wait for, at least.
        columns: metrics, parameters and tags to show in place of the columns that MLflow shows by itself.

    Returns the names of the runs as the table shows them, from top to bottom. Raises playwright's TimeoutError if they do not
    come within half a minute.
    """
    from playwright.sync_api import sync_playwright

    number = _experiment_id(uri, experiment)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            page = browser.new_page(viewport={"width": 1500, "height": 760})
            page.goto(f"{uri}/#/experiments/{number}/runs", wait_until="load")
            names = _unfold(page, children)
            if columns:
                _choose(page, columns)
            picture.parent.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=str(picture))
            return names
        finally:
            browser.close()


def _unfold(page: Any, children: int) -> list[str]:
    """Closes what covers the table and opens the newest sweep's fold; returns the names shown."""
    cells = page.locator(_NAME_CELL)
    cells.first.wait_for(timeout=_WAIT_MS)
    assistant = page.get_by_role("button", name="Close")
    if assistant.count():
        assistant.first.click()
    cells.first.locator("button").first.click()
    cells.nth(children).wait_for(timeout=_WAIT_MS)
    return [str(text).strip() for text in page.locator(f"{_NAME_CELL} a").all_inner_texts()]


def _choose(page: Any, columns: Sequence[str]) -> None:
    """Ticks `columns`, and unticks what MLflow ticks by itself."""
    page.get_by_role("button", name="Toggle sidebar").first.click()
    page.get_by_test_id("column-selection-dropdown").first.click()
    for name in (*_OWN_COLUMNS, *columns):
        page.get_by_title(name, exact=True).first.click(timeout=_WAIT_MS)
    page.keyboard.press("Escape")
    page.locator("[role=columnheader]", has_text=columns[0]).first.wait_for(timeout=_WAIT_MS)
    page.wait_for_timeout(1000)  # the table moves into place


def _experiment_id(uri: str, name: str) -> str:
    query = urllib.parse.urlencode({"experiment_name": name})
    with urllib.request.urlopen(f"{uri}/api/2.0/mlflow/experiments/get-by-name?{query}", timeout=30) as reply:
        return str(json.load(reply)["experiment"]["experiment_id"])


def live_display(storage: str, study: str, picture: Path, after: int) -> None:
    """Draws the live display of a sweep as it was when `after` of its trials had ended, from what its study has stored."""
    from rich.console import Console

    from sweeper.cli.display import Display
    from sweeper.records import Action, Decision, Ending, Outcome, Report, TrialSpec, TrialState
    from sweeper.study.read import StudyReader

    reader = StudyReader(storage)
    plan = reader.plan(study)
    screen = Console(record=True, force_terminal=True, width=150, file=io.StringIO())
    display = Display(Console(file=io.StringIO()))
    display.begin(plan, 0, None)
    events: list[tuple[int, Callable[[], None]]] = []
    ends = []
    for trial in reader.trials(study):
        spec = TrialSpec(study, trial.number, trial.params, trial.seed, trial.budget, trial.evaluations, trial.rungs)
        events.append((trial.started_ms or 0, partial(display.started, spec)))
        for view in reader.reports(study, trial.number):
            report = Report(trial.number, view.kind, view.nominal, view.examples, view.step, view.time_ms, view.metrics)
            events.append((view.time_ms, partial(display.reported, report, Decision(trial.number, Action.CONTINUE))))
        ending = Ending.COMPLETED if trial.state is TrialState.COMPLETE else Ending.PRUNED
        outcome = Outcome(ending, trial.reason, trial.metrics, examples=trial.examples)
        events.append((trial.ended_ms or 0, partial(display.ended, trial.number, outcome, trial.state)))
        ends.append(trial.ended_ms or 0)
    now = sorted(ends)[after - 1]
    shown = sorted((event for event in events if event[0] <= now), key=lambda event: event[0])
    for _, tell in shown:
        tell()
    display.pretend_begun((now - shown[0][0]) / 1000)
    screen.print(display.picture())
    picture.parent.mkdir(parents=True, exist_ok=True)
    screen.save_svg(str(picture), title=f"sweeper run {study}.yaml")


if __name__ == "__main__":
    kind, *words = sys.argv[1:]
    if kind == "mlflow":
        print("\n".join(mlflow_tree(words[0], words[1], Path(words[2]), columns=words[3:])))
    else:
        live_display(words[0], words[1], Path(words[2]), int(words[3]))
