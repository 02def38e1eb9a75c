"""Whatever README promises is run: its spec, its commands, its SQL, its links."""

from __future__ import annotations

import re
import shlex
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

import sweeper
from tests.support.cli import sweeper_command
from tests.support.tiny import sentences, write_csv

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Fenced blocks of a language, in order."""
    return [body for found, body in re.findall(r"^```(\w*)\n(.*?)^```\n", README, re.S | re.M) if found == language]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with README's first spec and rows for it."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "reviews.yaml").write_text(blocks("yaml")[0])
    write_csv(folder / "reviews.csv", sentences(300))
    return folder


@pytest.fixture(scope="module")
def ran(folder: Path, model_folder: Path) -> Iterator[dict[str, str]]:
    """What README's commands printed, by their verb; run where a user would, the hub's model replaced by a tiny one."""
    small = ["--set", f"model.name={model_folder}", "--set", "search.trials=3", "--set", "data.limit.train=64"]
    small += ["--set", "executor.kind=local", "--set", "training.chunk_tokens=256"]
    lines = [line.split("#")[0].strip() for line in blocks("")[1].splitlines()]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("SWEEPER_HOME", raising=False)
        printed = {}
        for line in filter(None, lines):
            words = shlex.split(line)
            assert words[0] == "sweeper", line
            extra = small if words[1] == "run" else []
            result = sweeper_command(*words[1:], *extra)
            assert result.code == 0, f"{line}: {result.out}{result.err}"
            printed[words[1]] = result.out
        yield printed


def test_the_commands_of_a_first_sweep_work(ran: dict[str, str]) -> None:
    assert list(ran) == ["validate", "run", "best", "predict"]
    assert "adapter" in ran["best"]
    assert ran["predict"].split()[0] in ("positive", "negative")


def test_the_python_names_exist(ran: dict[str, str], folder: Path) -> None:
    for name in re.findall(r"`[^`]*?sweeper\.([a-z_]+)\(", README):
        assert name in sweeper.__all__
    for name in re.findall(r"`result\.([a-z_]+)", README):
        assert name in sweeper.SweepResult.__dataclass_fields__ or hasattr(sweeper.SweepResult, name)


@pytest.mark.parametrize("question", re.findall(r"^--.*?;$", "\n".join(blocks("sql")), re.S | re.M))
def test_each_sql_question_has_an_answer(ran: dict[str, str], folder: Path, question: str) -> None:
    with sqlite3.connect(folder / "sweeps" / "study.db") as database:
        assert database.execute(question).fetchall()


def test_there_are_three_sql_questions() -> None:
    assert len(re.findall(r"^--.*?;$", "\n".join(blocks("sql")), re.S | re.M)) == 3


def test_links_and_pictures_resolve() -> None:
    for target in re.findall(r"\]\(([^)#]+)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_every_verb_is_in_the_table_and_none_is_missing() -> None:
    from sweeper.cli.app import app

    verbs = {command.name for command in app.registered_commands}
    table = README.partition("## Verbs")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([a-z]+)(?: |`)", "\n".join(line for line in table.splitlines() if line.startswith("| `"))))
    assert verbs == named
