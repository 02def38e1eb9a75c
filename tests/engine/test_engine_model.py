"""Base models: what is loaded, what is refused in a sentence, what is settled before a study."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig

from sweeper.engine.model import dropout_fields, knows, prepare_model
from sweeper.engine.probe import resolve_training
from sweeper.errors import ModelError
from sweeper.spec.models import ModelSpec, TrainingSpec

Folder = Callable[[str], Path]


def write_gguf(path: Path, folder: Path) -> None:
    """The tiny Llama as a GGUF file with Q8_0 weights and a byte-pair tokenizer of single letters."""
    model = AutoModelForCausalLM.from_pretrained(str(folder))
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tokens = ["<unk>", "<s>", "</s>", "a", "b", "ab", *(f"t{i}" for i in range(6, config.vocab_size))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (config.vocab_size - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        data = tensor.float().numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            data = data.reshape(heads, 2, -1, data.shape[1]).swapaxes(1, 2).reshape(data.shape)
        kind = gguf.GGMLQuantizationType.Q8_0 if data.ndim == 2 else gguf.GGMLQuantizationType.F32
        raw = gguf.quants.quantize(np.ascontiguousarray(data), kind) if data.ndim == 2 else data
        writer.add_tensor(names.get_name(name.removesuffix(".weight")) + ".weight", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_converted_once_and_gives_the_same_logits(tmp_path: Path, tiny_folder: Folder) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_folder("llama"))
    folder = prepare_model(ModelSpec(name=str(path)), tmp_path / "models")
    assert {p.name for p in folder.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert prepare_model(ModelSpec(name=str(path)), tmp_path / "models") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written

    ids = torch.arange(20, 40)[None]
    converted = AutoModelForCausalLM.from_pretrained(str(folder)).eval()
    direct = AutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file="tiny.gguf").eval()
    with torch.no_grad():
        torch.testing.assert_close(converted(ids).logits, direct(ids).logits)
        original = AutoModelForCausalLM.from_pretrained(str(tiny_folder("llama"))).eval()(ids).logits
        assert torch.linalg.norm(converted(ids).logits - original) < 0.05 * torch.linalg.norm(original)


def test_a_folder_is_itself(tiny_folder: Folder) -> None:
    assert prepare_model(ModelSpec(name=str(tiny_folder("qwen3"))), Path("unused")) == tiny_folder("qwen3")


@pytest.mark.parametrize(
    ("missing", "message"),
    [("config.json", "has no config.json"), ("*.safetensors", "save the model again"), ("tokenizer*", "has no tokenizer")],
)
def test_a_folder_that_lacks_something_gets_a_sentence(tmp_path: Path, tiny_folder: Folder, missing: str, message: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("llama"), folder)
    for file in folder.glob(missing):
        file.unlink()
    with pytest.raises(ModelError, match=message):
        prepare_model(ModelSpec(name=str(folder)), tmp_path)


def test_names_that_lead_nowhere_get_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such folder or file"):
        prepare_model(ModelSpec(name=str(tmp_path / "nothing")), tmp_path)
    with pytest.raises(ModelError, match="no such folder or file"):
        prepare_model(ModelSpec(name="missing.gguf"), tmp_path)
    with pytest.raises(ModelError, match="the hub could not give it"):
        prepare_model(ModelSpec(name="nobody-at-all/no-such-model"), tmp_path)
    with pytest.raises(ModelError, match=r"no folder, \.gguf file or hub id"):
        prepare_model(ModelSpec(name="a/b/c"), tmp_path)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelError, match="cannot be loaded"):
        prepare_model(ModelSpec(name=str(tmp_path / "broken.gguf")), tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_known_families_are_those_whose_rows_can_be_packed() -> None:
    assert knows(LlamaConfig())
    assert not knows(GPT2Config())
    assert knows(MistralConfig(sliding_window=None))
    assert not knows(MistralConfig(sliding_window=4096))
    assert not knows(LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}))


def test_training_is_resolved_to_numbers_and_says_what_it_chose(tiny_folder: Folder) -> None:
    said: list[str] = []
    resolved = resolve_training(TrainingSpec(), tiny_folder("gpt2"), notice=said.append)
    assert resolved.dtype in ("fp32", "bf16")
    assert (resolved.max_length, resolved.chunk_tokens) == (256, 1024)
    assert resolve_training(resolved, tiny_folder("gpt2")) == resolved
    assert any(f"dtype: auto is {resolved.dtype}" in line and "ms in bf16 and" in line for line in said)
    assert any("gpt2 is not among the families" in line for line in said)


def test_what_this_model_or_engine_cannot_do_is_refused(tiny_folder: Folder) -> None:
    cases: list[tuple[dict[str, object], str, str]] = [
        ({"base": "nf4"}, "gpt2", "'nf4', but gpt2 trains with transformers' own layers, which need the base as it is"),
        ({"targets": "w_proj"}, "llama", "no layer for 'w_proj'"),
        ({"max_length": 257}, "llama", "context is 256 tokens"),
    ]
    for changes, family, message in cases:
        with pytest.raises(ModelError, match=message):
            resolve_training(TrainingSpec.model_validate({"dtype": "fp32", **changes}), tiny_folder(family))


def test_targets_that_only_some_trial_would_have_are_looked_at_before_the_start(tiny_folder: Folder) -> None:
    training = TrainingSpec.model_validate({"dtype": "fp32"})
    assert resolve_training(training, tiny_folder("llama"), searched_targets=["qv", "mlp"]).targets == training.targets
    with pytest.raises(ModelError, match="wrong_proj"):
        resolve_training(training, tiny_folder("llama"), searched_targets=["qv", "wrong_proj"])


def test_dropout_fields_are_found() -> None:
    assert dropout_fields(GPT2Config()) == ("attn_pdrop", "embd_pdrop", "resid_pdrop")
    assert dropout_fields(LlamaConfig()) == ("attention_dropout",)
    assert dropout_fields(AutoConfig.for_model("bloom")) == ("attention_dropout", "hidden_dropout")


def test_full_fine_tuning_is_fp32_unless_asked_for(tiny_folder: Folder) -> None:
    said: list[str] = []
    full = TrainingSpec(method="full")
    assert resolve_training(full, tiny_folder("llama"), notice=said.append).dtype == "fp32"
    assert "loses small updates" in said[0]
    assert resolve_training(full.model_copy(update={"dtype": "bf16"}), tiny_folder("llama")).dtype == "bf16"
