"""The command line. Each command parses, calls one function of the library, and prints; nothing is decided here.

Results go to stdout (with --json nothing else does), all else to stderr. Exit codes: 0 done, 1 a check or verdict failed,
2 bad input or missing surroundings, 130 interrupted (what was made is kept; run again to go on).
"""

import atexit
import gc
import os
import sys
import threading
from contextlib import suppress
from typing import Any

from ..errors import AcclimateError

INTERRUPTED = 130


def _app() -> Any:
    """The program with all its commands."""
    from . import commands, merging, shifting

    assert commands.app is merging.app is shifting.app
    return commands.app


def program() -> None:
    """Entry point of ``acclimate``: :func:`main`, and away at once.

    Taking an interpreter with torch in it apart takes over half a second, in which nothing is done that leaving does not do.
    """
    try:
        main()
    except SystemExit as end:
        code = end.code
        if not isinstance(code, int) or any(one is not threading.main_thread() and not one.daemon for one in threading.enumerate()):
            raise  # it has something to say, or someone still works
        with suppress(OSError):  # nobody reads any more
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """The program; raises SystemExit with its exit code."""
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
