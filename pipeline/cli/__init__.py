"""The command line: `headwater plan | ingest | status | search | evaluate | doctor | …`.

What was asked for goes to stdout, as tables or, with `--json`, as JSON alone; progress, warnings and errors to stderr.
Exit codes: 0 all done, 1 failed, 2 wrong usage, 3 done with rejected documents, 4 an audit found differences, 5 a
gate holds, 6 a gate refuses, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
import warnings

from pipeline.errors import HeadwaterError, LaneHung, UsageError

__all__ = ["main"]


def main() -> None:
    """Run the command line; a user's mistake gets a message, never a traceback."""
    try:
        _run()
    except KeyboardInterrupt:
        sys.exit(130)


def _run() -> None:
    if sys.stderr is None:  # it was closed: nothing else may get its number
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
    # It takes a second, in which Ctrl-C is no traceback either.
    from pipeline.cli.report import print_error, print_warning

    # Libraries' warnings are shown without their source line.
    warnings.showwarning = lambda message, *_: print_warning(str(message))
    try:
        _use_utf8()
        from pipeline.cli.app import app

        app()
    except HeadwaterError as error:
        print_error(str(error))
        if isinstance(error, LaneHung):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)  # sys.exit would wait for the lane's threads
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        print_error(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}.")
        sys.exit(1)


def _use_utf8() -> None:
    """Read arguments and write JSON as UTF-8, whatever the locale says."""
    for number, argument in enumerate(sys.argv):
        try:
            sys.argv[number] = os.fsencode(argument).decode("utf-8")
        except UnicodeDecodeError:
            raise UsageError(f"argument {argument!a} is not UTF-8", "UTF-8", "Convert or rename it") from None
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
