"""The command line. Each command parses, calls one function of the library, and prints; nothing is decided here.

Results go to stdout (with --json nothing else does), all else to stderr. Exit codes: 0 done, 1 a check or verdict failed,
2 bad input or missing surroundings, 130 interrupted (what was made is kept; run again to go on).
"""

import gc
import sys
from typing import Any

from ..errors import AcclimateError

INTERRUPTED = 130


def _app() -> Any:
    """The program with all its commands."""
    from . import commands, merging, shifting

    assert commands.app is merging.app is shifting.app
    return commands.app


def main() -> None:
    """Entry point of ``acclimate``."""
    gc.set_threshold(50_000, 20, 50)  # imports make many objects and no garbage: looking for it costs a tenth of the start
    app = _app()
    try:
        code = app(standalone_mode=False)
    except AcclimateError as error:
        _complain(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        # click's own complaints (unknown option, missing argument) know how to show themselves
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            sys.exit(error.exit_code)
        raise
    if code == INTERRUPTED:  # typer makes an exit code of Ctrl-C
        _complain("interrupted; what was made is kept, run the same command with the same --out to go on")
    sys.exit(code if isinstance(code, int) else 0)


def _complain(text: str) -> None:
    print(f"acclimate: {text}", file=sys.stderr)


def __getattr__(name: str) -> Any:
    if name == "app":
        return _app()
    raise AttributeError(name)
