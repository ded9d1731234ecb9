"""What the user gets to read."""

import sys


class ExportError(Exception):
    """One line that names the file and the key, field or tensor that is wrong."""


def note(text):
    print(f"export.py: note: {text}", file=sys.stderr)
