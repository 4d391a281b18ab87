"""Training a task: Lightning module, optimizer, checkpoints, signals, progress."""
