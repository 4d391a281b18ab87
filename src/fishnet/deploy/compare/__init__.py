"""`fishnet compare`: train and compare several models and seeds with one recipe.

Every run is an ordinary run folder, OUT/MODEL/seedN, written by `fishnet train` in a separate process.
"""
