"""`predict`: what a study's winner answers to a text, or to the rows of a file, by the code that evaluated it.

Prompts are rendered and tokenised as in training (same template, same tokenizer, same cut), labels are scored and answers decoded
by the engine. Cost: loading the base model once (seconds), then a forward pass a prompt, or one a token for decoded answers.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

from sweeper.data.encode import end_of, leading_ids, plain_ids, render_chat, turn_end
from sweeper.data.source import FilePart, find_files
from sweeper.data.task import prompt_encoder
from sweeper.data.template import names_in
from sweeper.data.tokenizer import load_tokenizer
from sweeper.errors import DataError, UserError
from sweeper.spec.models import ModelSpec, SweepSpec, TrainingSpec
from sweeper.sweep.query import Place, adapter_of, trial_or_best
from sweeper.sweep.use import label_words, model_of, resolved_training, spec_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Columns = Mapping[str, Sequence[object]]


@dataclass(frozen=True)
class Answer:
    """What the model answers; `probabilities` of each label for classify (softmax of the label scores), else empty."""

    answer: str
    probabilities: Mapping[str, float]


@dataclass(frozen=True)
class Answers:
    """A file's rows with their answers: the columns of the file, then `prediction`, then one probability a label."""

    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]

    def write_csv(self, file: TextIO) -> None:
        """Writes a header and the rows."""
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)


def predict_text(place: Place, text: str, *, number: int | None = None) -> Answer:
    """The answer to one text. Raises UserError where the study's prompt needs more than a text."""
    model = _Winner(place, number)
    return model.answer(model.columns_of_text([text]))[0]


def predict_file(place: Place, path: Path, *, number: int | None = None) -> Answers:
    """The answers to all rows of a csv, tsv, jsonl or parquet file with the study's columns, or of a .txt file, a text a line."""
    model = _Winner(place, number)
    if path.suffix.lower() == ".txt":
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as UTF-8 text ({error}); mend the path or the file") from error
        batches: list[Columns] = [model.columns_of_text(lines)]
    else:
        batches = [batch for part in find_files(str(path), "--file") for batch in FilePart(part).batches()]
    if not any(len(next(iter(batch.values()), ())) for batch in batches):
        raise DataError(f"{path} holds no rows; give a file with at least one")
    names = tuple(dict.fromkeys(name for batch in batches for name in batch))
    rows: list[tuple[object, ...]] = []
    for batch in batches:
        answers = model.answer(batch)
        for place_in_batch, answer in enumerate(answers):
            source = tuple(batch[name][place_in_batch] if name in batch else None for name in names)
            rows.append((*source, answer.answer, *answer.probabilities.values()))
    return Answers((*names, "prediction", *(f"probability_{word}" for word in model.words)), tuple(rows))


class _Winner:
    """A trial's model with its study's prompts."""

    def __init__(self, place: Place, number: int | None) -> None:
        from sweeper.engine.predict import Predictor

        trial = trial_or_best(place, number)
        adapter = adapter_of(place, trial)
        self.spec: SweepSpec = spec_of(place)
        self.training: TrainingSpec = resolved_training(place)
        self.words = label_words(place) if self.spec.data.task == "classify" else ()
        base = model_of(place)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(ModelSpec(name=str(base)))
        full = self.training.method == "full"
        self.predictor = Predictor(
            adapter if full else base,
            None if full else adapter,
            dtype=self.training.dtype if self.training.dtype != "auto" else "fp32",
            trust_remote_code=self.spec.model.trust_remote_code,
            base=self.training.base,
        )

    def columns_of_text(self, texts: Sequence[str]) -> Columns:
        """Texts as rows with the one column that the prompt reads."""
        data = self.spec.data
        role = {"classify": "text", "instruct": "prompt", "text": "text", "chat": "messages"}[data.task]
        column = getattr(data.columns, role) or role
        if data.template is not None:
            used = names_in(data.template)
            if len(used) > 1:
                raise UserError(f"the prompt of this study reads {', '.join(used)}; give a file with these columns with --file")
            column = used[0]
        return {column: list(texts)}

    def answer(self, batch: Columns) -> list[Answer]:
        """One answer a row."""
        data, limit = self.spec.data, self.training.max_length or 1024
        if data.task in ("text", "chat"):
            prompts, end = self._open_prompts(batch)
            return self._decoded([ids[-limit:] for ids in prompts], end)
        encoder = prompt_encoder(data, self.tokenizer, list(batch), limit, self.words)
        longest = max((len(ids) for ids in encoder.label_ids), default=1)
        prompts = [
            ids if len(ids) + longest <= limit else encoder.cut_prompt(ids, limit - longest) for ids in encoder.prompts(batch)
        ]
        if data.task == "instruct":
            return self._decoded(prompts, encoder.end_id)
        best, scores = self.predictor.classify(prompts, encoder.label_ids)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        return [
            Answer(self.words[int(label)], dict(zip(self.words, (float(x) for x in row), strict=True)))
            for label, row in zip(best, shares, strict=True)
        ]

    def _decoded(self, prompts: list[list[int]], end: int) -> list[Answer]:
        tokens = self.predictor.generate(prompts, self.spec.evaluate.max_new_tokens, end)
        return [Answer(str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip(), {}) for ids in tokens]

    def _open_prompts(self, batch: Columns) -> tuple[list[list[int]], int]:
        data = self.spec.data
        if data.task == "chat":
            column = data.columns.messages or "messages"
            if column not in batch:
                raise DataError(
                    f"the rows have no column {column!r}; give one that holds the user's message, or a list of messages"
                )
            turns = [value if isinstance(value, list) else [{"role": "user", "content": str(value)}] for value in batch[column]]
            texts = [render_chat(self.tokenizer, messages, generation=True) for messages in turns]
            return plain_ids(self.tokenizer, texts), turn_end(self.tokenizer)
        column = data.columns.text or "text"
        if column not in batch:
            raise DataError(f"the rows have no column {column!r}; there are: {', '.join(batch)}")
        leading = leading_ids(self.tokenizer)
        return [leading + ids for ids in plain_ids(self.tokenizer, [str(x) for x in batch[column]])], end_of(self.tokenizer)
