"""What may stand at a path of a spec: allowed keys, allowed words, kind of value. Read from the models' own annotations.

Purpose: the nearest allowed name for a typo, wherever it was made (in the file or in `--set`).
Does not know values, lines or pydantic's errors. Cost: microseconds.
"""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from sweeper.spec.models import SweepSpec
from sweeper.spec.space import SEARCHABLE
from sweeper.spec.yaml_text import Path


def options_at(path: Path) -> list[Any]:
    """Annotations that the value at `path` may have, None left out; [] for a path that a spec cannot have."""
    options: list[Any] = [SweepSpec]
    for depth, key in enumerate(path):
        if path[:depth] == ("space",) and key not in SEARCHABLE:
            return []
        options = [found for option in options for found in _step(option, key)]
    return options


def keys_at(path: Path) -> list[str] | None:
    """Names that may stand below `path`; None where any name may (or none)."""
    if path == ("space",):
        return list(SEARCHABLE)
    keys = [key for option in options_at(path) if _is_model(option) for key in _fields(option)]
    return list(dict.fromkeys(keys)) or None


def words_at(path: Path) -> list[str]:
    """The closed list of words that may stand at `path`; [] where there is none."""
    return [str(word) for option in options_at(path) if get_origin(option) is Literal for word in get_args(option)]


def is_text(path: Path) -> bool:
    """Whether only text may stand at `path`, so that it needs no quotes."""
    options = options_at(path)
    return bool(options) and all(option is str for option in options)


def is_list(path: Path) -> bool:
    """Whether a list, and no section, may stand at `path`."""
    options = options_at(path)
    return any(get_origin(option) is list for option in options) and not any(_is_model(option) for option in options)


def description(path: Path) -> str:
    """What the field at `path` says of itself; empty where it says nothing."""
    if not path:
        return ""
    for option in options_at(path[:-1]):
        if _is_model(option) and path[-1] in _fields(option):
            return _fields(option)[str(path[-1])].description or ""
    return ""


def _step(option: Any, key: str | int) -> list[Any]:
    if option is Any:
        return [Any]
    if _is_model(option):
        fields = _fields(option)
        return _flatten(fields[str(key)].annotation) if key in fields else []
    origin, arguments = get_origin(option), get_args(option)
    if origin is dict:
        return _flatten(arguments[1])
    if origin is list and (isinstance(key, int) or key.isdigit()):
        return _flatten(arguments[0])
    return []


def _flatten(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _flatten(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [found for part in get_args(annotation) for found in _flatten(part)]
    return [] if annotation is type(None) else [annotation]


def _is_model(option: Any) -> bool:
    return isinstance(option, type) and issubclass(option, BaseModel)


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    return {field.alias or name: field for name, field in model.model_fields.items()}
