"""The command line: one small file per family of verbs. Each parses, calls one public function, prints; no logic.

Exit codes: 0 done; 2 a mistake the user can mend (one sentence, no traceback); 3 the sweep ran, but no trial completed;
130 interrupted. Cost: `sweeper --help` imports neither torch nor Ray.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the installed command `sweeper`."""
    from sweeper.cli.app import app
    from sweeper.errors import SweeperError, UserError

    try:
        app()
    except UserError as error:
        print(f"sweeper: {error}", file=sys.stderr)
        sys.exit(2)
    except SweeperError as error:
        print(f"sweeper: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
