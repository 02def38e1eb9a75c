"""A model in bf16, as most of the hub's are, written once more in fp32 for engines that share a node."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sweeper.engine.model import load_model
from sweeper.engine.stored import is_narrow, widen
from tests.engine.engine_world import write_model


@pytest.fixture
def narrow(tmp_path: Path) -> Path:
    """A model folder whose weights are bf16, but for one tensor."""
    folder = write_model(tmp_path / "narrow", "llama")
    path = folder / "model.safetensors"
    tensors = {name: tensor if name.endswith("norm.weight") else tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def test_a_widened_model_has_the_same_numbers_and_only_once(narrow: Path, tmp_path: Path) -> None:
    (tmp_path / "wide").mkdir()
    assert is_narrow(narrow)
    widen(narrow, tmp_path / "wide")
    assert not is_narrow(tmp_path / "wide")
    assert {path.name for path in (tmp_path / "wide").iterdir()} == {path.name for path in narrow.iterdir()}
    before, after = (load_model(folder, "fp32", "eager").state_dict() for folder in (narrow, tmp_path / "wide"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_fp32_engine_maps_an_fp32_file_and_copies_another(narrow: Path, tmp_path: Path) -> None:
    (tmp_path / "wide").mkdir()
    widen(narrow, tmp_path / "wide")
    mapped = {}
    for folder in (narrow, tmp_path / "wide"):
        model = load_model(folder, "fp32", "eager")
        weight = model.get_submodule("model.layers.0.mlp.up_proj").weight
        mapped[folder.name] = _in_file(weight.data_ptr(), folder)
    assert mapped == {"narrow": False, "wide": True}


def _in_file(address: int, folder: Path) -> bool:
    """Whether an address of this process lies in a mapping of a file in `folder`."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    spans = [re.match(r"([0-9a-f]+)-([0-9a-f]+)", line) for line in lines]
    return any(span is not None and int(span[1], 16) <= address < int(span[2], 16) for span in spans)
