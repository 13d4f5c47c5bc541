"""The command line: `headwater plan | ingest | search | evaluate | doctor`.

JSON goes to stdout alone, everything else to stderr. Exit codes: 0 all done, 1 failed, 2 wrong usage, 3 done
with rejected documents, 130 interrupted.
"""

from __future__ import annotations

import os
import sys

from pipeline.cli.app import app
from pipeline.cli.report import print_error
from pipeline.errors import HeadwaterError, UsageError

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; a user's mistake gets a message, never a traceback."""
    try:
        app()
    except HeadwaterError as error:
        print_error(str(error))
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        print_error(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}.")
        sys.exit(1)
