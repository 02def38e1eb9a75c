"""Weights stored in the engine's own dtype, so that the engines of a node share the pages of one file.

An fp32 engine maps an fp32 file: its weights are the page cache's, once for all processes (two engines of SmolLM2-135M: 557 MB each
in proportion, of which 282 MB are the process's own). From a file in another dtype, as most of the hub's are, each would hold a
private copy; so such a file is written once more in fp32. Every bf16 and fp16 number is an fp32 number: nothing changes.
A bf16 engine has embeddings in fp32 and linear layers in bf16 (`halves.py`), which transformers maps from no file: not done here.
Does not know who asks, or where the copy is kept. Cost: one tensor in memory at a time; the copy takes 4 bytes a number.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open

_NARROW = ("BF16", "F16")


def is_narrow(folder: Path) -> bool:
    """Whether the folder's weights hold numbers that an fp32 engine would have to convert."""
    return any(_narrow_names(path) for path in folder.glob("*.safetensors"))


def widen(folder: Path, into: Path) -> None:
    """Writes the model in `folder` to the empty folder `into`, with every bf16 and fp16 tensor in fp32, all else as it is."""
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            _widen_file(path, into / path.name)
        elif path.is_file():
            shutil.copy2(path, into / path.name)


def _narrow_names(path: Path) -> set[str]:
    with safe_open(str(path), framework="pt") as file:
        return {name for name in file.keys() if file.get_slice(name).get_dtype() in _NARROW}  # noqa: SIM118  no mapping


def _widen_file(source: Path, target: Path) -> None:
    """The format is a length, a JSON header with each tensor's dtype, shape and place, and the tensors one after another."""
    narrow = _narrow_names(source)
    with safe_open(str(source), framework="pt") as file, target.open("wb") as out:
        names, header, place = list(file.keys()), {}, 0
        if meta := file.metadata():
            header["__metadata__"] = dict(meta)
        for name in names:
            part = file.get_slice(name)
            wide = "F32" if name in narrow else part.get_dtype()
            size = _number(part.get_shape()) * (4 if name in narrow else file.get_tensor(name).element_size())
            header[name] = {"dtype": wide, "shape": part.get_shape(), "data_offsets": [place, place + size]}
            place += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        out.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            tensor = file.get_tensor(name)
            tensor = tensor.float() if name in narrow else tensor
            out.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)


def _number(shape: list[int]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count
