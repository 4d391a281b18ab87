"""Errors of exported networks."""

from __future__ import annotations


class RunnerError(Exception):
    """Error with a one-line message: what is wrong, where, and how to correct it."""
