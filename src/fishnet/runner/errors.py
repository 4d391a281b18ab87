"""Errors of exported networks."""

from __future__ import annotations


class RunnerError(Exception):
    """One line for the user: what is wrong, where, and how to correct it."""
