"""One module per command; each command is a typed function that can also be called from Python."""
