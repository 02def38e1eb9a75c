"""A small byte-level tokenizer, trained here, and what writes data files and specs for the tests of the data package."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sweeper.spec.models import SweepSpec

torch.set_num_threads(1)

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = "the film was good and the plot was bad Label: positive negative neutral user assistant hello what is the sum of one and two"


def make_tokenizer(bos: bool = False, chat: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 400 tokens; `bos` makes it put <s> before a text by itself."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    raw.train_from_iterator([TEXT] * 4, trainer)
    if bos:
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="<|im_end|>")
    tokenizer.chat_template = chat
    return tokenizer


Rows = Sequence[Mapping[str, Any]]


def write_csv(path: Path, rows: Rows) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def reviews(count: int) -> list[dict[str, str]]:
    """Different rows of two classes."""
    sides = (("bad", "negative"), ("good", "positive"))
    return [{"text": f"the film number {i} was {sides[i % 2][0]}", "label": sides[i % 2][1]} for i in range(count)]


def spec_of(data: Mapping[str, Any], **training: Any) -> SweepSpec:
    return SweepSpec.model_validate({"schema": 1, "name": "t", "model": "none", "data": data, "training": training})
