"""The base model's tokenizer and context, from a hub id, a folder or a GGUF file.

Does not know: the model's weights. Cost: a folder 0.1-1 s, a GGUF file about 6 s (its vocabulary is read in Python); importing
transformers about 4 s, so it is imported on first use.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper.errors import ModelError
from sweeper.spec.models import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNSET_LENGTH = 10**9
"""transformers writes a huge number where a tokenizer names no length."""


def load_tokenizer(model: ModelSpec) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model.

    Raises ModelError for a missing folder or file, one without a tokenizer, or a hub out of reach.
    """
    from transformers import AutoTokenizer

    name, gguf = locate(model)
    try:
        return AutoTokenizer.from_pretrained(name, **_options(model, gguf))
    except Exception as error:
        # transformers raises OSError, ValueError, KeyError, TypeError and plain Exception (from Rust) for what is one case here.
        raise ModelError(_why_not(model, "tokenizer", error)) from error


def context_length(model: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens the model can read: `max_position_embeddings` of its config, else the tokenizer's own limit. Raises ModelError."""
    from transformers import AutoConfig

    name, gguf = locate(model)
    try:
        config = AutoConfig.from_pretrained(name, **_options(model, gguf))
    except Exception as error:
        raise ModelError(_why_not(model, "config", error)) from error
    config = config.get_text_config()
    for field in ("max_position_embeddings", "n_positions", "max_seq_len"):
        length = getattr(config, field, None)
        if isinstance(length, int) and length > 0:
            return length
    if tokenizer.model_max_length < _UNSET_LENGTH:
        return int(tokenizer.model_max_length)
    raise ModelError(f"model {model.name} does not say how many tokens it can read; give training.max_length")


def locate(model: ModelSpec) -> tuple[str, str | None]:
    """(folder or hub id, name of the GGUF file in it or None). Raises ModelError for a path that does not exist."""
    path = Path(model.name).expanduser()
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelError(f"model {model.name} is no file (looked in {Path.cwd()}); mend the path")
        return str(path.parent), path.name
    if path.is_dir():
        return str(path), None
    if path.exists():
        raise ModelError(f"model {model.name} is a file, but must be a hub id, a folder or a .gguf file")
    if model.name.startswith(("/", ".", "~")) or model.name.count("/") > 1:
        raise ModelError(f"model {model.name} is no folder (looked in {Path.cwd()}); mend the path, or give a hub id")
    return model.name, None


def _options(model: ModelSpec, gguf: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {"trust_remote_code": model.trust_remote_code}
    if model.revision is not None:
        options["revision"] = model.revision
    if gguf is not None:
        options["gguf_file"] = gguf
    return options


def _why_not(model: ModelSpec, what: str, error: Exception) -> str:
    reason = next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if reason.endswith(":"):
        # The library goes on with a list of what it would have liked; our own sentence says what to do.
        reason = "there is none"
    name, gguf = locate(model)
    if "trust_remote_code" in str(error):
        return f"model {model.name} ships its own code; set model.trust_remote_code: true if you trust it"
    if gguf is not None:
        return f"no {what} can be read from {model.name} ({reason}); give a GGUF file that transformers can read, or a folder"
    if os.path.isdir(name):
        wanted = "tokenizer.json and tokenizer_config.json" if what == "tokenizer" else "config.json"
        return f"the folder {model.name} holds no usable {what} ({reason}); put the model's {wanted} into it"
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
    return f"the {what} of hub model {model.name} cannot be loaded{offline}: {reason}; mend its name, log in, or give a folder"
