"""What is said to the person at the screen beside a script's results."""

import sys


def say(text: str) -> None:
    """Print a note or a warning on stderr, which leaves stdout to the results."""
    print(text, file=sys.stderr)
