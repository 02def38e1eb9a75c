"""Rows to tokens, for the tasks classify, instruct and text (chat has its own file).

The prompt is tokenised alone, and the completion alone, so that a prompt at prediction time has exactly the tokens it had in
training:

    [BOS, where the tokenizer adds one] prompt | completion, end token
                                               ^ prompt = tokens before; only what follows is predicted

A completion after a template that does not end in white space begins with a space ("Label:" + " positive"). Tokens that a tokenizer
appends at the end by itself are left out. The first token of a row is never a target.
Does not know: files, splits. Cost: that of the fast tokenizer, about 20 µs for a short row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from sweeper.data.fingerprint import as_text
from sweeper.data.labels import Labels
from sweeper.data.template import Template
from sweeper.data.tokens import TokenRow
from sweeper.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Columns = Mapping[str, Sequence[object]]
Fate = Literal["kept", "cut", "long", "empty", "unlabelled"]


@dataclass(frozen=True)
class Encoded:
    """What became of one row. `row` is None unless it was kept or cut; `length` is its tokens before any cut."""

    row: TokenRow | None
    fate: Fate
    reference: str = ""
    length: int = 0


class Encoder(Protocol):
    """Turns batches of rows into tokens."""

    columns: tuple[str, ...]  # those it reads
    end_id: int

    def encode(self, batch: Columns) -> list[Encoded]:
        """One Encoded for each row of the batch, in order."""
        ...


class PromptEncoder:
    """classify and instruct: a prompt, and a completion of which every token and the end token are targets."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: Template,
        answers: str,
        max_length: int,
        cut: bool,
        chat: bool = False,
        labels: Labels | None = None,
    ) -> None:
        self.columns = tuple(dict.fromkeys((*template.columns, answers)))
        self.end_id: int = turn_end(tokenizer) if chat else end_of(tokenizer)
        self._tokenizer = tokenizer
        self._template = template
        self._answers = answers
        self._max_length = max_length
        self._cut = cut
        self._chat = chat
        self._leading = [] if chat else leading_ids(tokenizer)
        self._space = not chat and template.ends_open
        self._labels = labels
        self.label_ids = tuple(self._completions(list(labels.words))) if labels is not None else ()

    def prompts(self, batch: Columns) -> list[list[int]]:
        """The prompt's tokens of each row, as at prediction time: uncut, the completion's column not needed."""
        texts = self._template.render({name: batch[name] for name in self._template.columns})
        if self._chat:
            texts = [render_chat(self._tokenizer, [{"role": "user", "content": text}], generation=True) for text in texts]
        return [self._leading + ids for ids in plain_ids(self._tokenizer, texts)]

    def cut_prompt(self, ids: list[int], room: int) -> list[int]:
        """The last tokens of a prompt that fit into `room`, after the BOS it begins with."""
        head = self._leading if len(self._leading) < room else []
        return head + ids[len(ids) - (room - len(head)) :]

    def encode(self, batch: Columns) -> list[Encoded]:
        """One Encoded a row; the reference is the completion's text."""
        prompts = self.prompts(batch)
        answers = [as_text(value) for value in batch[self._answers]]
        sources = zip(*(batch[name] for name in self._template.columns), strict=True)
        blank = [not any(as_text(value).strip() for value in row) for row in sources]
        if self._labels is None:
            completions = self._completions(answers)
            rows = zip(prompts, completions, answers, blank, strict=True)
            return [self._fit(prompt, ids, text, -1, empty or not text.strip()) for prompt, ids, text, empty in rows]
        coded = []
        for prompt, answer, empty in zip(prompts, answers, blank, strict=True):
            label = self._labels.class_of.get(answer.strip())
            if label is None:
                coded.append(Encoded(None, "unlabelled"))
            else:
                coded.append(self._fit(prompt, self.label_ids[label], self._labels.words[label], label, empty))
        return coded

    def _completions(self, answers: list[str]) -> list[tuple[int, ...]]:
        spaced = self._space and not adds_space(self._tokenizer)
        texts = [f" {text}" if spaced and not text[:1].isspace() else text for text in answers]
        return [(*ids, self.end_id) for ids in plain_ids(self._tokenizer, texts)]

    def _fit(self, prompt: list[int], completion: tuple[int, ...], reference: str, label: int, empty: bool) -> Encoded:
        length = len(prompt) + len(completion)
        if empty or not prompt:
            return Encoded(None, "empty", length=length)
        if length <= self._max_length:
            return Encoded(_prompt_row(prompt, completion, label), "kept", reference, length)
        room = self._max_length - len(completion)
        if not self._cut or room < 1:
            return Encoded(None, "long", length=length)
        return Encoded(_prompt_row(self.cut_prompt(prompt, room), completion, label), "cut", reference, length)


class TextEncoder:
    """text: every token but the first is a target; the end token follows the text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template, max_length: int, cut: bool) -> None:
        self.columns = template.columns
        self.end_id: int = end_of(tokenizer)
        self._tokenizer = tokenizer
        self._template = template
        self._max_length = max_length
        self._cut = cut
        self._leading = leading_ids(tokenizer)

    def encode(self, batch: Columns) -> list[Encoded]:
        """One Encoded a row; there is no reference."""
        texts = self._template.render({name: batch[name] for name in self.columns})
        rows = []
        for text, plain in zip(texts, plain_ids(self._tokenizer, texts), strict=True):
            ids = [*self._leading, *plain, self.end_id]
            if not text.strip() or not plain:
                rows.append(Encoded(None, "empty", length=len(ids)))
            elif len(ids) > self._max_length and not self._cut:
                rows.append(Encoded(None, "long", length=len(ids)))
            else:
                target = np.ones(min(len(ids), self._max_length), np.bool_)
                target[0] = False
                fate: Fate = "cut" if len(ids) > self._max_length else "kept"
                rows.append(Encoded(TokenRow(np.array(ids[: self._max_length], np.int32), target, 0, -1), fate, "", len(ids)))
        return rows


def plain_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Tokens of each text, without those that the tokenizer adds by itself."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def leading_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that the tokenizer puts before a text by itself, BOS as a rule; often none."""
    bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start]
    return []


def adds_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts a space before a text by itself, as SentencePiece tokenizers do."""
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])
    return bool(tokens) and tokens[0].startswith("▁")


def end_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an answer. Raises ModelError if the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no end token (eos_token), so answers could not end; set it in tokenizer_config.json")
    return int(tokenizer.eos_token_id)


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an assistant's turn in the chat template; the end token where the template has none of its own."""
    mark = "sweeper"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
    after = render_chat(tokenizer, turns, generation=False).rpartition(mark)[2]
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    found = [token for token in plain_ids(tokenizer, [after])[0] if token in special] if after.strip() else []
    return found[0] if found else end_of(tokenizer)


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], generation: bool) -> str:
    """A conversation as the tokenizer's own chat template writes it. Raises ModelError without one, DataError if it refuses."""
    if not tokenizer.chat_template:
        raise ModelError("the model's tokenizer has no chat template; use a chat model, or task: instruct with data.template")
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
    except Exception as error:
        # Templates raise jinja2's errors, or any error of what they call.
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise DataError(f"the model's chat template refuses a conversation of {roles}: {error}; mend those rows") from error
    return text


def _prompt_row(prompt: list[int], completion: tuple[int, ...], label: int) -> TokenRow:
    ids = np.array([*prompt, *completion], np.int32)
    target = np.zeros(len(ids), np.bool_)
    target[len(prompt) :] = True
    return TokenRow(ids, target, len(prompt), label)
