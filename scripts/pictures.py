"""Pictures of the pages people look at, taken by a real browser for the README and for tests.

Purpose: open MLflow's page of an experiment, unfold the sweep's run, and keep what a person sees: a PNG file and the names of the
runs in order.
Does not know: how the runs came there. Needs playwright and Chromium (`CHROMIUM`, default /usr/bin/chromium).
Cost: about 10 s a picture.

    python scripts/pictures.py http://127.0.0.1:5000 demo benchmarks/pictures/mlflow.png final/accuracy learning_rate
"""

from __future__ import annotations

import json
import os
import sys
import urllib.parse
import urllib.request
from collections.abc import Sequence
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


if __name__ == "__main__":
    print("\n".join(mlflow_tree(sys.argv[1], sys.argv[2], Path(sys.argv[3]), columns=sys.argv[4:])))
