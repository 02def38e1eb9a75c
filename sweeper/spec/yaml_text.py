"""YAML as people mean it, with the line of every key.

Purpose: text to plain values and back, by YAML 1.2's core rules: `1e-4` is a number, `yes`, `no` and `1:30` are text. Keys
that stand twice are refused, only plain values are made (no tags, no objects), and every path knows its line.
Does not know what a spec is. Cost: a few milliseconds a page; at most `LARGEST` values, so that nested aliases cannot blow up.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from sweeper.errors import Problem

Path = tuple[str | int, ...]
LARGEST = 100_000
"""Most values of one document, aliases counted each time they are used."""

_TAG = "tag:yaml.org,2002:"
_CORE = (
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789")),
    ("float", re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"), list("-+.0123456789")),
    ("float", re.compile(r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"), list("-+.")),
    ("merge", re.compile(r"^<<$"), ["<"]),
)

_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")


class _Loader(yaml.SafeLoader):
    """Reads plain values by `_CORE` alone."""


class _Dumper(yaml.SafeDumper):
    """Quotes what `_CORE` would take for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Unicode's own line breaks are lost in plain and single-quoted text.
        style = '"' if any(char in "\x85\u2028\u2029\ufeff" for char in data) else None
        return self.represent_scalar(_TAG + "str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)
for _kind in (_Loader, _Dumper):
    _kind.yaml_implicit_resolvers = {}
    for _name, _pattern, _first in _CORE:
        _kind.add_implicit_resolver(_TAG + _name, _pattern, _first)


class YamlError(Exception):
    """Text that is no YAML, or says something twice; holds every problem found, each with its line."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(map(str, problems)))


def read_yaml(text: str) -> tuple[Any, dict[Path, int]]:
    """The document's value, and the line (from 1) of every path in it. Raises YamlError."""
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        reader = _Reader(loader)
        value = None if node is None else reader.value(node, ())
    except yaml.MarkedYAMLError as error:
        what = " ".join(part for part in (error.problem, error.context) if part)
        raise YamlError(
            [Problem("", f"not valid YAML: {what}; mend the line or put the text in quotes", _line_of(error, text))]
        ) from None
    except yaml.reader.ReaderError as error:
        line = _lines(text[: error.position])
        what = f"{error.reason} (character {error.position + 1} of the text); remove that character"
        raise YamlError([Problem("", f"not valid YAML: {what}", line)]) from None
    finally:
        if loader is not None:
            loader.dispose()
    if reader.problems:
        raise YamlError(reader.problems)
    return value, reader.lines


def write_yaml(value: Any) -> str:
    """`value` as YAML text that `read_yaml` reads back unchanged, keys in their own order."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def _line_of(error: yaml.MarkedYAMLError, text: str) -> int | None:
    """The line (from 1) that is wrong. What is still open at the end of the text is wrong where it was opened."""
    last = _lines(text.rstrip())
    lines = [mark.line + 1 for mark in (error.problem_mark, error.context_mark) if mark is not None]
    return next((line for line in lines if line <= last), last) if lines else None


def _lines(text: str) -> int:
    return len(_BREAK.findall(text)) + 1


def dotted(path: Path) -> str:
    """`training.rank`, `tracking.0.kind`: a path as `--set` takes it."""
    return ".".join(str(part) for part in path)


class _Reader:
    """Turns nodes into plain values, and notes lines and problems on the way."""

    def __init__(self, loader: _Loader) -> None:
        self.loader = loader
        self.lines: dict[Path, int] = {}
        self.problems: list[Problem] = []
        self.count = 0
        self.open: list[yaml.Node] = []

    def value(self, node: yaml.Node, path: Path) -> Any:
        line = node.start_mark.line + 1
        self.count += 1
        self.lines.setdefault(path, line)
        if self.count > LARGEST:
            raise YamlError([Problem("", f"more than {LARGEST} values came; a spec is a few hundred: check aliases (&, *)", line)])
        if any(node is other for other in self.open):
            raise YamlError([Problem(dotted(path), "this alias holds itself; write the value out", line)])
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        self.open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        finally:
            self.open.pop()

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line, name = key.start_mark.line + 1, str(key.value)
            if name in seen and key.tag != _TAG + "merge":
                where = dotted((*path, name))
                self.problems.append(Problem(where, f"this key stands twice, first in line {seen[name]}; keep one of them", line))
            seen.setdefault(name, line)
        self.loader.flatten_mapping(node)
        result: dict[str, Any] = {}
        for key, item in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.problems.append(
                    Problem(dotted(path), "a list or section came as a key, but a key is one word", key.start_mark.line + 1)
                )
                continue
            # Keys stay text, whatever they look like: a label column may hold 0 and 1.
            here = (*path, key.value)
            self.lines[here] = key.start_mark.line + 1
            result[key.value] = self.value(item, here)
        return result

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        try:
            if kind == "int":
                return int(text)
            if kind == "float":
                return float(
                    text.replace(".inf", "inf").replace(".Inf", "inf").replace(".INF", "inf").lower().replace(".nan", "nan")
                )
        except ValueError:
            pass
        if kind != "str":
            line = node.start_mark.line + 1
            self.problems.append(
                Problem(dotted(path), f"the tag {node.tag} came, but a spec takes plain values only; remove it", line)
            )
        return text
