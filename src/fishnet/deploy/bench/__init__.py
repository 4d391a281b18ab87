"""`fishnet bench`: how fast models run, in which runtime, side by side on one machine.

A row of the table is a `Case`. Every case has a process of its own, which builds the model and waits; the rows take
turns, so that a busy machine slows all of them alike.
"""
