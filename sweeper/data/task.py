"""From a spec's data section to the encoder of its task: columns, template, labels.

Does not know: how rows are stored or written. Cost: the label column is read once for classify.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sweeper.data import labels as classes
from sweeper.data.chat import ChatEncoder
from sweeper.data.encode import Encoder, PromptEncoder, TextEncoder
from sweeper.data.template import Template, parse
from sweeper.errors import DataError, nearest
from sweeper.spec.models import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROLES = {"classify": ("text", "label"), "instruct": ("prompt", "completion"), "text": ("text",), "chat": ("messages",)}
_ANSWER = {"classify": "label", "instruct": "completion"}
_DEFAULT_TEMPLATES = {"classify": ("{", "text", "}\nLabel:"), "instruct": ("{", "prompt", "}\n"), "text": ("{", "text", "}")}


def columns_of(data: DataSpec, available: list[str]) -> dict[str, str]:
    """Which column plays which role of the task: as the spec says, else the column of the role's own name if there is one.

    With a template the prompt's role may stay open. Raises DataError for a column that is named or needed, but not there.
    """
    roles = _ROLES[data.task]
    found = {}
    for role in roles:
        named = getattr(data.columns, role)
        if named is not None and named not in available:
            raise DataError(f"data.columns.{role} is {named!r}, which the data does not have; {nearest(named, available)}")
        if named is not None or role in available:
            found[role] = named or role
        elif data.template is None or role == _ANSWER.get(data.task):
            raise DataError(
                f"task {data.task} needs a {role} column, and the data has none of that name; set data.columns.{role} to one of: "
                f"{', '.join(sorted(available))}"
            )
    return found


def template_of(data: DataSpec, columns: Mapping[str, str], available: list[str]) -> Template:
    """The spec's template, or the task's own ("{text}\\nLabel:", "{prompt}\\n", "{text}").

    Raises DataError for a template that cannot be used, or that shows the answer.
    """
    answer = columns.get(_ANSWER.get(data.task, ""))
    if data.template is None:
        before, role, after = _DEFAULT_TEMPLATES[data.task]
        # Built by hand: a column's name may itself hold braces.
        template = Template((before[1:], columns[role], after[1:]))
    else:
        template = parse(data.template, available, columns)
    if answer is not None and answer in template.columns:
        raise DataError(f"data.template shows {answer!r}, the answer that is to be learnt; leave it out of the template")
    return template


def encoder_of(
    data: DataSpec,
    tokenizer: PreTrainedTokenizerBase,
    available: list[str],
    max_length: int,
    labels: classes.Labels | None = None,
) -> Encoder:
    """The encoder of the spec's task for data with the columns `available`; classify needs `labels`.

    Raises DataError, ModelError.
    """
    columns = columns_of(data, available)
    cut = data.too_long == "cut"
    if data.task == "chat":
        if data.template is not None:
            raise DataError("data.template is for tasks classify, instruct and text; chat uses the model's own chat template")
        return ChatEncoder(tokenizer, columns["messages"], max_length, cut)
    template = template_of(data, columns, available)
    if data.task == "text":
        return TextEncoder(tokenizer, template, max_length, cut)
    encoder = PromptEncoder(tokenizer, template, columns[_ANSWER[data.task]], max_length, cut, data.chat_template, labels)
    if len(set(encoder.label_ids)) < len(encoder.label_ids):
        raise DataError("two labels have the same tokens, so they could not be told apart; give them other words in data.labels")
    return encoder


def prompt_encoder(
    data: DataSpec, tokenizer: PreTrainedTokenizerBase, available: list[str], max_length: int, words: tuple[str, ...] = ()
) -> PromptEncoder:
    """The encoder of classify or instruct for new rows, which lack the answer's column; `words` are the classes, in order.

    A new row may also bear the name of the role (text, prompt) in place of the column's. `prompts(batch)` and `cut_prompt` are what
    predicting needs. Raises DataError for another task or a missing column.
    """
    if data.task not in _ANSWER:
        raise DataError(f"task {data.task} has no prompt of its own; predict needs task classify or instruct")
    renamed: dict[str, str] = {
        role: role for role in ("text", "prompt") if getattr(data.columns, role) not in available and role in available
    }
    data = data.model_copy(update={"columns": data.columns.model_copy(update=renamed)})
    answer = getattr(data.columns, _ANSWER[data.task]) or _ANSWER[data.task]
    labels = classes.Labels(words, {word: number for number, word in enumerate(words)}) if data.task == "classify" else None
    encoder = encoder_of(data, tokenizer, list(dict.fromkeys([*available, answer])), max_length, labels)
    assert isinstance(encoder, PromptEncoder)
    return encoder
