"""What sets a fresh machine up: pinned versions, the demo's clean start, and the packages that tests need."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    found = dict(line.split("==") for line in lines)
    assert lines == sorted(lines, key=str.casefold)
    assert len(found) == len(lines)
    return {canonicalize_name(name): version for name, version in found.items()}


def test_pins_are_public_versions_and_cover_every_requirement() -> None:
    found = pins()
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in found.values()), "no local builds such as +cpu"
    extras = PROJECT["optional-dependencies"].values()
    wanted = [Requirement(line) for group in [PROJECT["dependencies"], *extras] for line in group]
    for requirement in wanted:
        if requirement.name != "sweeper":
            assert requirement.specifier.contains(found[canonicalize_name(requirement.name)]), requirement


def test_this_environment_is_the_pinned_one() -> None:
    for name in ("torch", "transformers", "peft", "optuna", "ray", "mlflow", "sqlalchemy", "pydantic"):
        assert metadata.version(name).partition("+")[0] == pins()[name]


def forget(home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "forget_demo.py"), str(home)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_demo_starts_over_but_never_takes_another_study_along(tmp_path: Path) -> None:
    home = tmp_path / "sweeps"
    assert forget(home).returncode == 0
    home.mkdir()
    (home / "stores.json").write_text(json.dumps({"demo": "sqlite:///a", "mine": "sqlite:///b"}))
    kept = forget(home)
    assert (kept.returncode, home.exists()) == (2, True)
    assert kept.stderr.count("\n") == 1
    assert "mine" in kept.stderr
    (home / "stores.json").write_text(json.dumps({"demo": "sqlite:///a"}))
    assert forget(home).returncode == 0
    assert not home.exists()


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """A folder of commands as a user without root has them: no browser."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "find"):
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    user = folder / "id"
    user.write_text("#!/bin/sh\necho 1000\n")
    user.chmod(0o755)
    return folder


def system_deps(path: Path) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "scripts" / "system-deps")]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": str(path)})


def test_missing_packages_are_named_in_one_sentence_without_root(bare_path: Path) -> None:
    answer = system_deps(bare_path)
    assert answer.returncode == 1
    assert answer.stderr.count("\n") == 1
    assert "sudo apt-get install chromium" in answer.stderr


def test_nothing_is_said_where_packages_are_present(bare_path: Path) -> None:
    (bare_path / "chromium").symlink_to(sys.executable)
    answer = system_deps(bare_path)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


@pytest.mark.parametrize("target", ["demo", "demo-fresh", "test", "lint", "check", "bench", "setup"])
def test_every_target_can_be_planned_from_a_fresh_clone(target: str, tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    plan = subprocess.run(["make", "-n", target], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert plan.returncode == 0, plan.stderr
    assert "-m venv .venv" in plan.stdout
    assert "-c constraints.txt -e" in plan.stdout
