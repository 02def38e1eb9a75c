"""`--set training.rank=4`: keys of a spec changed from the command line, before anything is checked.

The value is read as YAML (`--set space.rank=[4,8]`); where only text may stand it is taken as it is. Setting a searched key
to null (`--set space.dropout=null`) takes it out of the space.
Does not know whether a value is right: the models and checks say so afterwards. Cost: microseconds each.
"""

from __future__ import annotations

from typing import Any

from sweeper.errors import Problem, nearest
from sweeper.spec.shape import is_list, is_text, keys_at, options_at
from sweeper.spec.yaml_text import Path, YamlError, dotted, read_yaml


def apply_override(raw: dict[str, Any], override: str) -> tuple[Path, Problem | None]:
    """Changes `raw` in place; returns the path that was set, and what was wrong with the override, if anything."""
    name, equals, text = override.partition("=")
    keys: Path = tuple(int(part) if part.isdigit() else part for part in name.strip().split("."))
    if not equals or not name.strip():
        return (), Problem("--set", f"{override!r} came, but KEY=VALUE is needed, e.g. --set training.rank=4")
    problem = _unknown(keys)
    if problem is not None:
        return keys, problem
    try:
        value = _value(keys, text.strip())
    except YamlError as error:
        message = f"the value {text.strip()!r} cannot be used: {error.problems[0].message}"
        return keys, Problem(f"--set {name}", message)
    wrong = _put(raw, keys, value)
    return keys, None if wrong is None else Problem(f"--set {name}", wrong)


def _unknown(keys: Path) -> Problem | None:
    for depth, key in enumerate(keys):
        above = keys[:depth]
        if options_at(keys[: depth + 1]):
            continue
        allowed = keys_at(above)
        where = f"--set {dotted(keys)}"
        if is_list(above):
            return Problem(
                where, f"{dotted(above)} is a list; name an element by its number, e.g. {dotted(above)}.0, or set all of it"
            )
        if allowed is None:
            return Problem(where, f"{dotted(above)} has no keys below it; write --set {dotted(above)}=VALUE")
        return Problem(where, f"unknown key {str(key)!r}; {nearest(str(key), allowed)}")
    return None


def _value(keys: Path, text: str) -> Any:
    if not is_text(keys):
        return read_yaml(text)[0]
    if text in ("null", "~"):
        return None
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return read_yaml(text)[0] if quoted else text


def _put(raw: dict[str, Any], keys: Path, value: Any) -> str | None:
    node: Any = raw
    for depth, key in enumerate(keys):
        above, last = keys[:depth], depth == len(keys) - 1
        if isinstance(node, list):
            if not isinstance(key, int) or key > len(node):
                return f"{dotted(above)} has {len(node)} elements; name one by its number, from 0 to {len(node)} (a new one)"
            if key == len(node):
                node.append(None)
            current = node[key]
        elif isinstance(node, dict):
            key = str(key)
            current = node.get(key)
            if last and value is None and above == ("space",):
                node.pop(key, None)
                return None
        else:
            return f"{dotted(above)} is {node!r} in the spec, not a section; set all of it, e.g. --set '{dotted(above)}={{...}}'"
        node[key] = value if last else _opened(keys[: depth + 1], current)
        node = node[key]
    return None


def _opened(path: Path, current: Any) -> Any:
    """The value at `path`, made ready for a key below it: short forms are written out, what is absent becomes an empty section."""
    if path == ("model",) and isinstance(current, str):
        return {"name": current}
    if path[0] == "tracking" and isinstance(current, str):
        return [{"kind": current}] if len(path) == 1 else {"kind": current}
    if path == ("tracking",) and isinstance(current, dict):
        return [current]
    if current is None:
        return [] if is_list(path) else {}
    return current
