"""Suggestions of follow-up commands."""

from __future__ import annotations

import shlex
from pathlib import Path


def suggest(*words: str | Path) -> None:
    """Print the command that usually follows.

    Args:
        words: Arguments of `fishnet`.
    """
    print("next: fishnet " + " ".join(shlex.quote(str(word)) for word in words), flush=True)
