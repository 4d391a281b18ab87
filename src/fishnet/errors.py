"""Errors for users: one line that says what is wrong, where, and how to correct it."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable


class FishnetError(Exception):
    """The work failed; the command line prints the message and exits with 1."""

    exit_code = 1


class UsageError(FishnetError):
    """The request is invalid, such as an unknown option; the command line exits with 2."""

    exit_code = 2


class Interrupted(Exception):
    """A signal stopped the run; its state is saved. The exit code is that of the shell: 130 or 143."""

    def __init__(self, signum: int, command: str):
        """Set the message, with the command that continues the run."""
        super().__init__(f"stopped by {signal.Signals(signum).name}; the state is saved, continue with: {command}")
        self.exit_code = 128 + signum


def refuse_options(given: Iterable[str], known: Iterable[str], owner: str) -> None:
    """Reject unknown options.

    Args:
        given: Names of the given options, such as max_detections.
        known: Names of the existing options.
        owner: Command or part that has the options, for the message.

    Raises:
        UsageError: An option that `owner` does not have.
    """
    known = sorted(known)
    for name in given:
        if name not in known:
            flags = ", ".join(f"--{option.replace('_', '-')}" for option in known)
            raise UsageError(f"--{name.replace('_', '-')} is not an option of {owner}; its options: {flags}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question with the nearest known names, or an empty string if none is near."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def counted(count: int, things: str) -> str:
    """Return a number with a noun, which is given in the plural: `2 images`, `1 class`."""
    if count == 1:
        things = things.removesuffix("es") if things.endswith("sses") else things.removesuffix("s")
    return f"{count} {things}"
