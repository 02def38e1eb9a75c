"""The benchmark of what rows begin with runs whole on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.start import main


def test_it_times_both_ways_for_every_number_of_tokens(tmp_path: Path) -> None:
    assert main(["--quick", "--starts", "2,64", "--json", str(tmp_path / "out.json")]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["shared_tokens"] for row in rows] == [2, 64]
    assert all(row["shared_seconds"] > 0 and row["whole_seconds"] > 0 for row in rows)
