"""The command `fastdiff`: one file a command, imported when it is called.

Exit status: 0 done, 2 something the user can put right (one sentence on stderr, no traceback);
1 where a command that looks for something has found it.
"""

import sys
from typing import NoReturn


class UserError(Exception):
    """Something that the user can put right; the text says what was got and what would do."""


def main() -> NoReturn:
    """Entry point of the command line."""
    from fastdiff.cli.commands import app

    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
