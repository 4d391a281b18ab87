"""Heads: features -> raw outputs -> losses in training, answers otherwise."""
