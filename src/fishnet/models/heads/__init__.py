"""Heads: maps of a pyramid -> losses in training, raw outputs otherwise; decoding is apart from both."""
