"""One file per command; each is a typed function that Python users can call too."""
