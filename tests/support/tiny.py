"""A whole base model of a few thousand parameters, and rows that it can learn: real files, made in a second.

The task can be learned by a random two-layer model in about a hundred examples: a sentence's sentiment is one of its words.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

GOOD = ("good", "great", "fine", "lovely")
BAD = ("bad", "awful", "poor", "dull")
SUBJECTS = ("film", "phone", "book", "meal", "song", "game", "hotel", "car")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """`count` sentences with their sentiment, as (text, label)."""
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        label = "positive" if chance.random() < 0.5 else "negative"
        word = chance.choice(GOOD if label == "positive" else BAD)
        rows.append((f"the {chance.choice(SUBJECTS)} number {number} was {word}", label))
    return rows


def write_csv(
    path: Path, rows: Sequence[tuple[str, str]], extra: Sequence[str] = (), columns: tuple[str, str] = ("text", "label")
) -> Path:
    """Rows as a csv file with columns text, label and, cycling through `extra`, domain."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, *(["domain"] if extra else [])])
        for number, (text, label) in enumerate(rows):
            writer.writerow([text, label, *([extra[number % len(extra)]] if extra else [])])
    return path


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of about 320 tokens, with an end token and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text + " " + label for text, label in sentences(200)], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    fast.chat_template = CHAT_TEMPLATE
    fast.model_max_length = 128
    return fast


def tiny_model(folder: Path, family: str = "llama", *, seed: int = 0, layers: int = 2) -> Path:
    """A randomly initialised model with its tokenizer, saved as a user's model folder. Families: llama, qwen3, gpt_neox, gpt2."""
    tokenizer = tiny_tokenizer()
    vocabulary = len(tokenizer)
    common = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": True}
    wide = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    }
    config = {
        "llama": lambda: LlamaConfig(num_key_value_heads=2, **wide, **common),
        "qwen3": lambda: Qwen3Config(num_key_value_heads=2, head_dim=16, **wide, **common),
        "gpt_neox": lambda: GPTNeoXConfig(**wide, **{**common, "tie_word_embeddings": False}),
        "gpt2": lambda: GPT2Config(n_embd=64, n_layer=layers, n_head=4, n_positions=128, **common),
    }[family]()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
