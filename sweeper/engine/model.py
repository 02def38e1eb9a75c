"""Base models: where they come from, whether they are complete, and how they are loaded.

A base is a folder of safetensors with config and tokenizer. A hub id becomes its snapshot; a GGUF file is converted once, into
fp32 (its quantised blocks are fp32 after reading, so nothing is lost and loading needs no conversion again).
Does not know trials. Cost: loading is a memory map and a copy (a second for 135M parameters); converting a GGUF of that size
takes about 25 s, once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D
from transformers.utils.logging import disable_progress_bar

from sweeper.engine.halves import halve
from sweeper.engine.targets import FAMILIES
from sweeper.errors import ModelError
from sweeper.spec.models import ModelSpec

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]
_MOVING_ROPES = ("dynamic", "longrope")  # their angles depend on the longest row around


def prepare_model(model: ModelSpec, models_home: Path) -> Path:
    """The folder that an engine loads: `model.name` itself, a hub snapshot, or a GGUF file converted below `models_home`.

    Raises ModelError if there is no such model, or its config, weights or tokenizer are missing.
    """
    path = Path(model.name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        folder = _convert_gguf(path.resolve(), models_home)
    elif path.is_dir():
        folder = path.resolve()
    elif path.suffix in (".gguf", ".safetensors", ".bin") or model.name.startswith((".", "/", "~")):
        raise ModelError(
            f"model.name is {model.name!r}, but there is no such folder or file; give a folder, a .gguf file or a hub id"
        )
    else:
        folder = _snapshot(model)
    check_folder(folder)
    return folder


def check_folder(folder: Path) -> None:
    """Raises ModelError if `folder` lacks what training needs: config, safetensors, tokenizer."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"model folder {folder} has no config.json; give the folder that save_pretrained wrote")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"model folder {folder} has no *.safetensors weights; other formats are not read, because they can run code: "
            "save the model again with save_pretrained"
        )
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(
            f"model folder {folder} has no tokenizer ({', '.join(_TOKENIZER_FILES)}); save the model's tokenizer into it"
        )


def load_config(folder: Path | str, trust_remote_code: bool = False) -> Any:
    """The model's transformers config. Raises ModelError."""
    with _sentences(folder):
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)


def load_model(folder: Path | str, dtype: str, attention: str, device: str = "cpu", trust_remote_code: bool = False) -> Any:
    """The causal language model in `folder`, frozen and in eval mode, with attention implementation `attention`.

    dtype is fp32, or bf16 for linear layers in bf16 and all else in fp32 (`halves.py`). Raises ModelError.
    """
    with _sentences(folder):
        model = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=torch.float32 if dtype == "fp32" else "auto",
            attn_implementation=attention,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    model.requires_grad_(False)
    if dtype == "bf16":
        halve(model)
    model.config.use_cache = False
    return model.eval().to(device)


def recompute_activations(model: Any) -> None:
    """Gradient checkpointing: activations are computed again in the backward pass. transformers renamed it within version 5."""
    arguments = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=arguments)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments)


def load_tokenizer(folder: Path | str, trust_remote_code: bool = False) -> Any:
    """The tokenizer in `folder`. Raises ModelError."""
    with _sentences(folder):
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)


def knows(config: Any) -> bool:
    """Whether the packed engine knows this architecture; others train with transformers' and peft's own layers.

    Left out are rotary angles that depend on the longest row in the batch, and attention windows: both would make a row depend
    on its neighbours, or attention be wrong.
    """
    if config.model_type not in FAMILIES:
        return False
    rope = getattr(config, "rope_parameters", None) or {}
    layers = getattr(config, "layer_types", None) or []
    window = getattr(config, "sliding_window", None) if config.model_type == "mistral" else None
    return rope.get("rope_type", "default") not in _MOVING_ROPES and set(layers) <= {"full_attention"} and window is None


def family_note(config: Any) -> str:
    """One sentence for the user where `knows` is False."""
    return (
        f"{config.model_type} is not among the families that the packed engine knows ({', '.join(sorted(FAMILIES))}, "
        "with full attention): it trains with transformers' and peft's own layers, one trial per worker"
    )


def linear_names(model: nn.Module) -> list[str]:
    """Paths of all linear layers but the head, in model order."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not head]


def skeleton(config: Any, trust_remote_code: bool = False) -> Any:
    """The model without weights: its layers' names and shapes, in milliseconds and no memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def context_length(config: Any) -> int:
    """Tokens of the model's context; 2048 if its config does not say."""
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 2048


def dropout_fields(config: Any) -> tuple[str, ...]:
    """The config's dropout probabilities, by which full fine-tuning drops out; empty if the model has none."""
    names: Mapping[str, Any] = config.to_dict()
    fields = [k for k, v in names.items() if _is_dropout(k) and isinstance(v, int | float) and not isinstance(v, bool)]
    return tuple(sorted(fields))


def _is_dropout(name: str) -> bool:
    return ("dropout" in name or name.endswith(("pdrop", "_drop"))) and not name.startswith(("classifier", "summary"))


@contextmanager
def _sentences(folder: Path | str) -> Iterator[None]:
    """Turns what transformers raises about a model into one sentence, and keeps its progress bars out of a sweep's display."""
    disable_progress_bar()
    try:
        yield
    except Exception as error:  # tokenizers raises bare Exceptions
        first = str(error).strip().split("\n", 1)[0]
        raise ModelError(f"the model in {folder} cannot be loaded: {first or type(error).__name__}") from error


def _snapshot(model: ModelSpec) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(model.name, revision=model.revision, allow_patterns=_HUB_FILES))
    except HFValidationError:
        raise ModelError(f"model.name is {model.name!r}, which is no folder, .gguf file or hub id (owner/name)") from None
    except Exception as error:
        first = str(error).strip().split("\n", 1)[0]
        raise ModelError(
            f"model {model.name!r} is no folder or file here, and the hub could not give it ({first}); check the name, "
            "the network and, for a gated model, your token"
        ) from error


def _convert_gguf(path: Path, models_home: Path) -> Path:
    """Folder of the converted model; named by path, size and time of the file, so that a changed file is converted again."""
    facts = path.stat()
    mark = hashlib.sha256(f"{path}\0{facts.st_size}\0{facts.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = models_home / f"{path.stem}-{mark}"
    if (folder / "config.json").is_file():
        return folder
    models_home.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".converting-", dir=models_home))
    try:
        _write_gguf(path, aside)
        aside.chmod(0o755)
        try:
            os.replace(aside, folder)
        except OSError:
            if not (folder / "config.json").is_file():  # else another process was first
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _write_gguf(path: Path, folder: Path) -> None:
    """Loads the GGUF file and saves model and tokenizer into `folder`."""
    with _sentences(path):
        source = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    # save_pretrained refuses a model that came from a GGUF file: a fresh one of the same config saves.
    raw = {k: v for k, v in source.config.to_dict().items() if k != "quantization_config"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(type(source.config).from_dict(raw), dtype=torch.float32)
    model.load_state_dict(source.state_dict(), assign=True)
    model.tie_weights()
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    config = json.loads((folder / "config.json").read_text())
    if "quantization_config" in config:
        raise ModelError(f"{path} could not be converted: its quantisation stayed in the config")
