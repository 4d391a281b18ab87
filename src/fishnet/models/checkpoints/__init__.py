"""Weights on disk: layouts, a reader that executes no code, conversion, download."""
