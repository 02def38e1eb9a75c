"""What engine tests need: tiny random models of each family, token rows, setups, and a loop that drives an engine.

Models have 2 layers, hidden size 64 and 300 tokens, so that a test takes seconds on one core.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sweeper.data.tokens import TokenInfo, TokenRow, TokenSet, write_token_set
from sweeper.engine.base import Ended, EngineSetup, Event
from sweeper.engine.depot import FolderDepot
from sweeper.engine.engine import TrialEngine
from sweeper.records import Action, Decision, Outcome, ParamValue, Report, ReportKind, TrialSpec
from sweeper.spec.models import EvaluateSpec, TrainingSpec

VOCAB = 300
END = 2
LABELS = ("a", "a b", "c")
LABEL_IDS = ((10, END), (10, 11, END), (12, END))  # the first begins the second

PARAMS: Mapping[str, ParamValue] = {
    "learning_rate": 1e-2,
    "batch_size": 4,
    "weight_decay": 0.1,
    "dropout": 0.0,
    "rank": 4,
    "alpha": 8.0,
    "targets": "all",
    "warmup": 0.1,
    "schedule": "cosine",
    "beta1": 0.9,
    "beta2": 0.95,
    "clip": 1.0,
    "label_smoothing": 0.0,
    "epochs": 1.0,
}


def build_model(family: str, intermediate: int = 96) -> Any:
    """A random model, weights seeded."""
    torch.manual_seed(7)
    common = {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 256}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": intermediate, "head_dim": 16}
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**common, **heads, tie_word_embeddings=True, attention_dropout=0.0))
    if family == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**common, **heads))
    if family == "gpt_neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(**common, num_attention_heads=4, intermediate_size=intermediate))
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=64, n_layer=2, n_head=4, n_positions=256))


def write_model(folder: Path, family: str, intermediate: int = 96) -> Path:
    """The model as a folder, with a word-level tokenizer."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    model = build_model(family, intermediate)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                p.mul_(3)  # far from uniform predictions, so that differences show
            elif "norm" in name or "ln" in name:
                p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(str(folder))
    words = Tokenizer(WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCAB)}}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>").save_pretrained(
        str(folder)
    )
    return folder


def classify_rows(count: int, seed: int) -> list[TokenRow]:
    """Prompts of 5 to 19 tokens with a label; the label follows from the first token, so that it can be learned."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        prompt = rng.integers(20, VOCAB, rng.integers(5, 20)).astype(np.int32)
        label = int(prompt[0]) % 3
        completion = np.array(LABEL_IDS[label], np.int32)
        target = np.concatenate([np.zeros(len(prompt), bool), np.ones(len(completion), bool)])
        rows.append(TokenRow(np.concatenate([prompt, completion]), target, len(prompt), label))
    return rows


def instruct_rows(count: int, seed: int) -> list[TokenRow]:
    """Prompts with 3 to 7 tokens to answer."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        prompt = rng.integers(20, VOCAB, rng.integers(5, 20)).astype(np.int32)
        completion = np.append(rng.integers(20, VOCAB, rng.integers(2, 7)), END).astype(np.int32)
        target = np.concatenate([np.zeros(len(prompt), bool), np.ones(len(completion), bool)])
        rows.append(TokenRow(np.concatenate([prompt, completion]), target, len(prompt), -1))
    return rows


def write_rows(folder: Path, rows: Sequence[TokenRow], task: str) -> TokenSet:
    """The rows as a token set; row ids are r0, r1, ..."""
    info = TokenInfo(
        task=task,
        rows=len(rows),
        tokens=sum(len(row.ids) for row in rows),
        longest=max((len(row.ids) for row in rows), default=0),
        labels=LABELS if task == "classify" else (),
        label_ids=LABEL_IDS if task == "classify" else (),
        end_id=END,
    )
    names = [f"r{i}" for i in range(len(rows))]
    text = [" ".join(f"w{token}" for token in row.ids[row.prompt :] if token != END) for row in rows]
    write_token_set(folder, info, rows, pa.table({"row_id": names, "reference": text}))
    return TokenSet(folder)


def behind(start: Sequence[int], rows: Sequence[TokenRow]) -> list[TokenRow]:
    """The same rows with `start` before each."""
    ids, nothing = np.array(start, np.int32), np.zeros(len(start), bool)
    return [
        TokenRow(np.concatenate([ids, row.ids]), np.concatenate([nothing, row.target]), len(start) + row.prompt, row.label)
        for row in rows
    ]


def predict_all(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """The same rows, every token of which is predicted."""
    return [replace(row, target=np.ones(len(row.ids), bool)) for row in rows]


@dataclass
class World:
    """A model, two sides of data and a depot below one folder."""

    root: Path
    model: Path
    task: str = "classify"
    start: Sequence[int] = ()  # tokens that every row begins with

    def __post_init__(self) -> None:
        make = classify_rows if self.task == "classify" else instruct_rows
        self.train = write_rows(self.root / "train", behind(self.start, make(48, 1)), self.task)
        self.validation = write_rows(self.root / "validation", behind(self.start, make(24, 2)), self.task)
        self.depot = FolderDepot(self.root / "depot")

    def setup(self, **changes: Any) -> EngineSetup:
        """The study's setup; keys of `training` and of EngineSetup may be changed."""
        training = {"method": "lora", "dtype": "fp32", "max_length": 64, "chunk_tokens": 64, **changes.pop("training", {})}
        values: dict[str, Any] = {
            "study": "s",
            "model": str(self.model),
            "revision": None,
            "trust_remote_code": False,
            "train": self.root / "train",
            "validation": self.root / "validation",
            "training": TrainingSpec.model_validate(training),
            "evaluate": EvaluateSpec(every=16, share=5.0),
            "metrics": ("accuracy",) if self.task == "classify" else (),
            "objective": "accuracy" if self.task == "classify" else "loss",
            "maximize": self.task == "classify",
            "at": "last",
            "checkpoint_seconds": 1e9,
            "full_examples": 80,
            **changes,
        }
        return EngineSetup(**values)

    def engine(self, **changes: Any) -> TrialEngine:
        """An engine for `setup(**changes)`."""
        return TrialEngine(self.setup(**changes), self.depot)


def trial(number: int = 0, examples: int = 80, rungs: Sequence[int] = (), every: int = 16, **changes: Any) -> TrialSpec:
    """A trial with evaluations every `every` examples; other keywords are parameters, `seed` and `resume_from` aside."""
    own = {key: changes.pop(key) for key in ("seed", "resume_from") if key in changes}
    evaluations = tuple(sorted({*range(every, examples, every), *rungs, examples}))
    return TrialSpec(
        study="s",
        number=number,
        params={**PARAMS, **changes},
        examples=examples,
        evaluations=evaluations,
        rungs=tuple(rungs),
        **{"seed": 5, **own},
    )


@dataclass
class Story:
    """What an engine said."""

    reports: list[Report] = field(default_factory=list)
    ends: dict[int, Outcome] = field(default_factory=dict)

    def values(self, number: int) -> list[tuple[int, int, dict[str, float]]]:
        """(nominal, examples, metrics) of every evaluation of a trial."""
        return [
            (r.nominal, r.examples, dict(r.metrics))
            for r in self.reports
            if r.trial == number and r.kind is not ReportKind.PROGRESS
        ]


def drive(
    engine: TrialEngine,
    trials: Sequence[TrialSpec],
    answer: Callable[[Report], Action] = lambda report: Action.CONTINUE,
    until: Callable[[Story], bool] = lambda story: False,
) -> Story:
    """Runs `trials` to their ends (or until `until`), as an executor does."""
    story = Story()
    waiting = list(trials)

    def take(events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Ended):
                story.ends[event.trial] = event.outcome
                continue
            story.reports.append(event)
            if event.kind is not ReportKind.PROGRESS:
                take(engine.decide(Decision(event.trial, answer(event), "asked")))

    while (waiting or engine.trials()) and not until(story):
        while waiting and engine.available():
            engine.admit(waiting.pop(0))
        take(engine.step())
    return story
