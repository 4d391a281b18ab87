"""`fishnet bench`: speed of models in several runtimes on one machine.

A row of the table is a `Case`. Every case has its own process, which builds the model and waits for requests; rows are
measured in turns, so that other load on the machine affects all of them equally.
"""
