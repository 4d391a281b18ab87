"""Data sets, transforms and checks, one module per task."""
