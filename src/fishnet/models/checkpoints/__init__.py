"""Weights on disk: layouts, a reader that runs no code, conversion, download."""
