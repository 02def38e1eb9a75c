"""The command line: one small file per family of verbs. Each parses, calls one public function, prints; no logic.

Exit codes: 0 done; 2 a mistake the user can mend (one sentence, no traceback); 3 the sweep ran, but no trial completed;
130 interrupted. Cost: `sweeper --help` imports neither torch nor Ray.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from typing import NoReturn


def command() -> NoReturn:
    """The installed command `sweeper`: `main`, whose process then ends at once.

    An interpreter that takes torch and its friends down object by object needs two seconds more. What has to happen at the end
    happens all the same, in the interpreter's own order: other threads end their work, functions of `atexit`, the last output.
    """
    code: object = 0
    try:
        main()
    except SystemExit as stopped:
        code = stopped.code
    if not isinstance(code, int):
        sys.exit(code if isinstance(code, str) else 0)
    with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C waits for nobody
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a closed pipe or stream
            stream.flush()
    os._exit(code)


def main() -> None:
    """The verbs, and what their errors are to a shell. Raises SystemExit."""
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
