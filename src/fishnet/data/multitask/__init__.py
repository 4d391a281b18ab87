"""Data with labels of several levels: reading, and checking."""
