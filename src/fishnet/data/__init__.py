"""Data sets, transforms and checks, one package per task."""
