"""Suggestions of follow-up commands."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from fishnet.environment import SILENT


def suggest(*words: str | Path) -> None:
    """Print the command that usually follows, unless another command runs this one.

    Args:
        words: Arguments of `fishnet`.
    """
    if SILENT not in os.environ:
        print("next: fishnet " + " ".join(shlex.quote(str(word)) for word in words), flush=True)
