"""Tiny models, made once a session, and a world with one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from tests.engine.engine_world import World, write_model


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random model of a family: llama, qwen3, gpt_neox or gpt2."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = write_model(tmp_path_factory.mktemp("model") / family, family)
        return made[family]

    return folder


@pytest.fixture
def world(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> World:
    """A classification world on the tiny Llama."""
    return World(tmp_path, tiny_folder("llama"))


@pytest.fixture
def make_world(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> Callable[..., World]:
    """A world for a family, a task and the tokens that every row begins with."""

    def make(family: str = "llama", task: str = "classify", start: Sequence[int] = ()) -> World:
        return World(tmp_path / f"{family}-{task}-{len(start)}", tiny_folder(family), task, start)

    return make
