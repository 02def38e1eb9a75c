"""Tokenizers from folders and GGUF files, and one sentence for each that cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from data_helpers import make_tokenizer, reviews, spec_of, write_jsonl
from transformers import LlamaConfig

from sweeper.data.build import build
from sweeper.data.fingerprint import tokenizer_fingerprint
from sweeper.data.tokenizer import context_length, load_tokenizer
from sweeper.data.tokens import TokenSet
from sweeper.errors import ModelError
from sweeper.spec.models import ModelSpec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tokenizer().save_pretrained(tmp_path / "model")
    LlamaConfig(max_position_embeddings=77).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_gives_tokenizer_and_context(folder: Path) -> None:
    model = ModelSpec(name=str(folder))
    tokenizer = load_tokenizer(model)
    assert tokenizer("the film was good")["input_ids"] == make_tokenizer()("the film was good")["input_ids"]
    assert tokenizer.chat_template == make_tokenizer().chat_template
    assert context_length(model, tokenizer) == 77


def test_a_fingerprint_tells_tokenizers_apart_and_survives_use(folder: Path) -> None:
    tokenizer = load_tokenizer(ModelSpec(name=str(folder)))
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["hello", "hello the film"], truncation=True, max_length=2)
    assert tokenizer_fingerprint(tokenizer) == before
    assert tokenizer_fingerprint(load_tokenizer(ModelSpec(name=str(folder)))) == before
    assert tokenizer_fingerprint(make_tokenizer(bos=True)) != before
    assert tokenizer_fingerprint(make_tokenizer(chat="{{ messages }}")) != before


def test_the_build_asks_the_models_config_for_its_context(tmp_path: Path, folder: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", reviews(60))
    spec = spec_of({"task": "classify", "path": str(path)}).model_copy(update={"model": ModelSpec(name=str(folder))})
    assert build(spec, load_tokenizer(spec.model), tmp_path / "home").max_length == 77


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/folder", "is no folder"),
        ("./gone", "is no folder"),
        ("gone.gguf", "is no file"),
        ("nobody/no-such-model", r"hub model nobody/no-such-model cannot be loaded"),
    ],
)
def test_a_model_that_is_not_there_gets_one_sentence(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_tokenizer(ModelSpec(name=name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "files", [{}, {"config.json": '{"model_type": "llama"}'}, {"tokenizer.json": "{", "tokenizer_config.json": "{}"}]
)
def test_a_folder_without_tokenizer_gets_one_sentence(tmp_path: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match="holds no usable tokenizer") as caught:
        load_tokenizer(ModelSpec(name=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_a_gguf_file_that_is_none_gets_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"not a model")
    with pytest.raises(ModelError, match="no tokenizer can be read from") as caught:
        load_tokenizer(ModelSpec(name=str(tmp_path / "a.gguf")))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def smollm(demo_assets: Path) -> Any:
    return load_tokenizer(ModelSpec(name=str(next(demo_assets.glob("*.gguf")))))


def test_a_real_gguf_tokenizer_builds_labels_and_conversations(tmp_path: Path, smollm: Any) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", reviews(60))
    tokens = TokenSet(build(spec_of({"task": "classify", "path": str(path)}, max_length=64), smollm, tmp_path / "home").train)
    row = tokens.row(0)
    assert smollm.decode(row.ids) == f"{tokens.column('text')[0]}\nLabel: {tokens.references()[0]}<|im_end|>"
    assert [smollm.decode(ids) for ids in tokens.info.label_ids] == [" negative<|im_end|>", " positive<|im_end|>"]

    talks = [[{"role": "user", "content": f"hi {i}"}, {"role": "assistant", "content": f"Hello {i}."}] for i in range(60)]
    path = write_jsonl(tmp_path / "b.jsonl", [{"messages": talk} for talk in talks])
    tokens = TokenSet(build(spec_of({"task": "chat", "path": str(path)}, max_length=64), smollm, tmp_path / "home").train)
    row = tokens.row(0)
    assert smollm.decode(row.ids[row.target]).startswith("Hello ")
    assert smollm.decode(row.ids[row.target]).endswith(".<|im_end|>")
    assert smollm.decode(row.ids).startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
