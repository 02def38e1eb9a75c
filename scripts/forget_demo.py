"""Removes the demo's home, so that `make demo-fresh` starts over. A home that holds another study as well is left alone.

Does not know Sweeper; only the names in `stores.json`. Cost: none.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path


def main(home: Path) -> int:
    """Removes `home`; returns 2 after one sentence where it holds other studies, 0 otherwise."""
    stores = home / "stores.json"
    try:
        others = sorted(set(json.loads(stores.read_text())) - {"demo"}) if stores.is_file() else []
    except ValueError:
        others = [f"{stores.name} cannot be read"]
    if others:
        print(f"{home} holds other studies ({', '.join(others)}), so it stays; move it away and run again", file=sys.stderr)
        return 2
    shutil.rmtree(home, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
