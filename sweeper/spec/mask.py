"""Secrets taken out of what is stored, logged or shown.

Masked are passwords in URLs, URL parameters and keys whose names say that they are secret (password, token, secret, key ...).
Does not know where a value came from. Cost: microseconds a value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"

_NAME = re.compile(r"(?:token|password|passwd|secret|credential|(?:^|[_-])(?:key|apikey|pwd|auth)$)", re.IGNORECASE)
# First up to the last @ of the authority, so that a password that holds an @ of its own is masked whole; then, for one that holds
# a slash, up to the first @.
_AUTHORITY = re.compile(r"(://[^:/@\s]*):(?:[^\s/?#]+@|[^@\s]+@)")
_PARAMETER = re.compile(
    r"([?&;][\w.-]*(?:token|password|passwd|secret|credential|signature|api_?key|access_?key|sig)[\w.-]*=)[^&;\s#]+", re.IGNORECASE
)


def mask(value: Any) -> Any:
    """`value` (text, or nested mappings and lists of it) with every secret as `***`; numbers and everything else stay."""
    if isinstance(value, str):
        return _PARAMETER.sub(rf"\1{MASK}", _AUTHORITY.sub(rf"\1:{MASK}@", value))
    if isinstance(value, Mapping):
        return {
            key: MASK if isinstance(item, str) and item and _NAME.search(str(key)) else mask(item) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [mask(item) for item in value]
    return value
