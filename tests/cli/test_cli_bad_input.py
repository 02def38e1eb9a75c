"""A user's mistake gets one sentence that says what came, what is allowed and what to do; exit code 2; nothing is lost."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import SpecMaker
from tests.support.cli import sweeper_command
from tests.support.disk import small_disk
from tests.support.tiny import sentences, write_csv

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, make_spec: SpecMaker) -> Write:
    """Writes the tiny spec, with sections merged over it, to a YAML file."""

    def write_file(**sections: Any) -> Path:
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump(make_spec(**sections), sort_keys=False))
        return path

    return write_file


def refused(*words: object) -> str:
    """The sentence that a command was refused with."""
    ran = sweeper_command(*words)
    assert ran.code == 2, ran.out + ran.err
    assert "Traceback" not in ran.err
    return ran.err


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"trainig": {"rank": 4}}, ["trainig", "training"]),
        ({"training": {"rank": "four"}}, ["training.rank", "four"]),
        ({"space": {"learning_rate": {"low": 1e-2, "high": 1e-4}}}, ["space.learning_rate", "0.01", "0.0001"]),
        ({"space": {"learning_rate": {"low": 0, "high": 1e-2, "log": True}}}, ["space.learning_rate", "above 0"]),
        ({"space": {"max_length": [32, 64]}}, ["space.max_length", "searched"]),
        ({"objective": {"metric": "rouge_l"}}, ["objective.metric", "rouge_l", "accuracy"]),
    ],
)
def test_a_wrong_spec_names_the_path_and_what_is_allowed(write: Write, sections: dict[str, Any], said: list[str]) -> None:
    sentence = refused("validate", write(**sections))
    for word in said:
        assert word in sentence
    assert re.search(r"line \d+", sentence)


def test_all_mistakes_are_told_at_once(write: Write) -> None:
    sentence = refused("validate", write(trainig={"rank": 4}, training={"batch_size": 0}, objective={"metric": "chrf"}))
    assert "3 problems" in sentence


def test_a_typo_in_set_names_the_nearest_key(write: Write) -> None:
    sentence = refused("run", write(), "--set", "training.rnak=4")
    assert "training.rnak" in sentence
    assert "did you mean 'rank'" in sentence


def test_a_missing_spec_file_is_named(tmp_path: Path) -> None:
    assert "nowhere.yaml" in refused("run", tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("content", "data", "said"),
    [
        (b"", {}, ["empty"]),
        (b"text,label\n", {}, ["no rows"]),
        ("sentence,label\n" + "".join(f"good {n},positive\nbad {n},negative\n" for n in range(60)), {}, ["text", "sentence"]),
        (b"text,label\n" + b"the film was fine,positive\n" * 20 + b"\xff\xfe broken,negative\n", {}, ["UTF-8"]),
        ("text,label\n" + "".join(f"film {n} was fine,positive\n" for n in range(60)), {}, ["positive", "class"]),
        (None, {"labels": ["positive", "negative", "neutral"]}, ["neutral"]),
    ],
)
def test_rows_that_cannot_be_used_are_refused_in_a_sentence(
    write: Write, tmp_path: Path, sentences_csv: Path, content: bytes | str | None, data: dict[str, Any], said: list[str]
) -> None:
    path = tmp_path / "rows.csv"
    raw = sentences_csv.read_bytes() if content is None else content.encode() if isinstance(content, str) else content
    path.write_bytes(raw)
    base = yaml.safe_load(write().read_text())["data"]
    sentence = refused("run", write(data={**base, **data, "path": str(path)}), "--home", tmp_path / "home")
    for word in said:
        assert word.lower() in sentence.lower()


def test_a_batch_larger_than_the_training_set_is_refused(write: Write, tmp_path: Path) -> None:
    sentence = refused("run", write(space={"batch_size": [8, 500]}), "--home", tmp_path / "home")
    assert "500" in sentence
    assert "96" in sentence


def test_rows_longer_than_the_context_are_counted_and_refused(write: Write, tmp_path: Path) -> None:
    rows = [*sentences(100), ("word " * 400, "positive"), ("word " * 500, "negative")]
    base = yaml.safe_load(write().read_text())["data"]
    spec = write(data={**base, "path": str(write_csv(tmp_path / "long.csv", rows)), "limit": {}})
    sentence = refused("run", spec, "--home", tmp_path / "home")
    assert "2 of" in sentence
    assert "too_long" in sentence


def test_a_model_folder_without_tokenizer_is_refused(write: Write, model_folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(model_folder, bare, ignore=shutil.ignore_patterns("tokenizer*", "chat_template*"))
    sentence = refused("run", write(model=str(bare)), "--home", tmp_path / "home")
    assert str(bare) in sentence
    assert "tokenizer" in sentence


def test_a_full_disk_is_told_before_anything_is_written(write: Write, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "8m") as disk:
        sentence = refused("run", write(), "--home", disk / "home")
    assert "MB are free" in sentence


def test_a_database_out_of_reach_is_told_without_its_password(write: Write, tmp_path: Path) -> None:
    spec = write(storage="postgresql+psycopg://me:hunter2@127.0.0.1:9/study")
    sentence = refused("run", spec, "--home", tmp_path / "home")
    assert "127.0.0.1:9" in sentence
    assert "hunter2" not in sentence


def test_a_port_in_use_is_told(tmp_path: Path, write: Write) -> None:
    home = tmp_path / "home"
    assert sweeper_command("run", write(search={"trials": 1, "pruner": "none"}), "--home", home).code == 0
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for verb in ("mlflow", "dashboard"):
            assert str(port) in refused(verb, "tiny", "--port", port, "--home", home)
    assert "nosuch" in refused("status", "nosuch", "--home", home)
    assert "trial 7" in refused("show", 7, "tiny", "--home", home)
    assert "exists" in refused("export", "best", tmp_path, "tiny", "--home", home)


def test_verbs_in_an_empty_home_say_how_to_begin(tmp_path: Path) -> None:
    for verb in ("status", "trials", "best"):
        assert "sweeper run" in refused(verb, "--home", tmp_path)
