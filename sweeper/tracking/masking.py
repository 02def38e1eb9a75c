"""Takes secrets out of what is shown: passwords and tokens inside URLs.

Purpose: nothing that a tracker stores, and no sentence about a tracker, carries a password. Environment variables and keys
never come here: trackers read those themselves.
Does not know: trackers, specs. Costs microseconds a string.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

HIDDEN = "***"

# The password ends at the last @ before the path, since a password may hold an @ itself.
_USER_INFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<user>[^\s:/@]*):(?P<password>[^\s/]+)@")
_QUERY = re.compile(r"(?P<key>[?&](?:password|passwd|pwd|token|api_key|apikey|secret|sig|signature)=)[^&\s#]+", re.IGNORECASE)


def mask(text: str) -> str:
    """`text` with the password of every URL in it, and secret query values, replaced by ***."""
    return _QUERY.sub(rf"\g<key>{HIDDEN}", _USER_INFO.sub(rf"\g<scheme>\g<user>:{HIDDEN}@", text))


def mask_tree(value: object) -> object:
    """The same for every string of nested mappings and sequences; other values stay as they are."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, Mapping):
        return {key: mask_tree(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [mask_tree(item) for item in value]
    return value


def mask_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags with their values masked."""
    return {key: mask(str(value)) for key, value in tags.items()}
