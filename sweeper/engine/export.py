"""Adapters in PEFT's own format: written, read, and merged into their base.

    adapter_config.json           rank, alpha, target modules, base model
    adapter_model.safetensors     base_model.model.<layer path>.lora_A.weight [r, in] and .lora_B.weight [out, r]

peft only warns where keys are missing and then runs the bare base, so reading compares the keys itself.
Does not know trials. Cost: the adapter's bytes; merging loads the base once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from sweeper.engine.model import check_folder, load_model
from sweeper.engine.params import Params
from sweeper.engine.targets import block, block_list
from sweeper.errors import ModelError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_KEEP = (
    "tokenizer*",
    "vocab*",
    "merges*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.model",
    "generation_config.json",
)

Pairs = Mapping[str, tuple[Tensor, Tensor]]
"""A [r, in] and B [out, r] by layer path."""


def adapter_files(
    pairs: Pairs, params: Params, base: str, conv1d: bool = False, linears: Sequence[str] | None = None
) -> dict[str, bytes]:
    """The adapter's two files. `base` is the model it belongs to; `conv1d` for GPT-2's transposed layers.

    `linears`, all linear layers of the model but its head, are given where only some transformer layers carry adapters: the
    config then names layers by `layers_to_transform`, as a person would write it.
    """
    tensors: dict[str, Tensor] = {}
    for path, (down, up) in pairs.items():
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = down.detach().float().cpu().contiguous()
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = up.detach().float().cpu().contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": params.rank,
        "lora_alpha": params.alpha,
        "lora_dropout": params.dropout,
        "target_modules": sorted(pairs),
        "bias": "none",
        "fan_in_fan_out": conv1d,
        **(_some_layers(list(pairs), linears) if linears is not None else {}),
    }
    return {CONFIG: (json.dumps(config, indent=2) + "\n").encode(), WEIGHTS: save(tensors, metadata={"format": "pt"})}


def _some_layers(paths: Sequence[str], linears: Sequence[str]) -> dict[str, Any]:
    """peft's keys for `paths`, which lie in some transformer layers only; none if those keys would mean other layers too."""
    numbers = sorted({number for path in paths if (number := block(path)) is not None})
    names = sorted({path.rsplit(".", 1)[-1] for path in paths})
    meant = {path for path in linears if path.rsplit(".", 1)[-1] in names and block(path) in numbers}
    lists = {block_list(path) for path in paths}
    if meant != set(paths) or len(lists) != 1:
        return {}
    return {"target_modules": names, "layers_to_transform": numbers, "layers_pattern": lists.pop()}


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, tuple[Tensor, Tensor]]]:
    """Config and A, B by layer path of a PEFT LoRA adapter. Raises ModelError if a file, a key or half a pair is missing."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(f"adapter folder {folder} has no {name}; give a folder that `sweeper export` or peft wrote")
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("use_rslora"):
        raise ModelError(f"adapter {folder} is of peft_type {config.get('peft_type')!r}; only plain LORA adapters are read")
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load((folder / WEIGHTS).read_bytes()).items():
        path, _, half = key.removeprefix(_PREFIX).rpartition(".lora_")
        if not key.startswith(_PREFIX) or half not in ("A.weight", "B.weight"):
            raise ModelError(f"adapter {folder} holds {key!r}, which is no LoRA weight that peft would read")
        halves.setdefault(path, {})[half[0]] = tensor
    single = [path for path, found in halves.items() if len(found) != 2]
    if single or not halves:
        raise ModelError(f"adapter {folder} is incomplete: {', '.join(single) or 'it holds no layer'}")
    return config, {path: (found["A"], found["B"]) for path, found in halves.items()}


def merge_adapter(model_dir: Path, adapter_dir: Path, out_dir: Path, trust_remote_code: bool = False) -> Path:
    """Writes the base with the adapter added to its weights (W + alpha / r * B A), tokenizer included, to `out_dir`.

    Raises ModelError if `out_dir` holds something, or the adapter names a layer that the base has not.
    """
    if out_dir.exists() and any(out_dir.iterdir()):
        raise ModelError(f"{out_dir} is not empty; give a new folder")
    check_folder(model_dir)
    config, pairs = read_adapter(adapter_dir)
    model = load_model(model_dir, "fp32", "sdpa", trust_remote_code=trust_remote_code)
    modules: dict[str, Any] = dict(model.named_modules())
    unknown = sorted(set(pairs) - set(modules))
    if unknown:
        raise ModelError(f"adapter {adapter_dir} names layers that {model_dir} has not: {', '.join(unknown[:3])}")
    with torch.no_grad():
        for path, (down, up) in pairs.items():
            update = config["lora_alpha"] / config["r"] * (up.float() @ down.float())
            modules[path].weight += update.t() if isinstance(modules[path], Conv1D) else update
    save_model(model, model_dir, out_dir)
    return out_dir


def save_model(model: Any, model_dir: Path, out_dir: Path) -> None:
    """Writes `model` as a folder that transformers loads, with the other files of `model_dir` (tokenizer, chat template)."""
    model.config.use_cache = True
    try:
        model.save_pretrained(str(out_dir))
    finally:
        model.config.use_cache = False
    for file in _others(model_dir, _KEEP):
        shutil.copyfile(file, out_dir / file.name)


def _others(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
