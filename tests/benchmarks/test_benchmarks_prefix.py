"""The prefix benchmark runs whole on a tiny model, and leaves the node's own cache alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.prefix import main


def test_it_times_every_side_and_writes_its_cache_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    assert main(["--quick", "--trials", "2", "--json", str(tmp_path / "out.json")]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["side"] for row in rows] == ["read", "computed", "all layers"]
    assert all(row["seconds"] > 0 for row in rows)
    assert not (tmp_path / "cache").exists()
