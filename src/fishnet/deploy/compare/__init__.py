"""`fishnet compare`: several models and seeds trained by one recipe, and what came of it side by side.

Every run is an ordinary run folder, OUT/MODEL/seedN, written by `fishnet train` in a process of its own.
"""
