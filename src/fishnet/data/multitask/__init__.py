"""Data with labels of several levels: reading, checking and splitting."""
