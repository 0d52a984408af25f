"""Axis expressions and the solver that unifies them: which channels, anywhere in a network, are the same ones.

A layer with 10 columns reads the channels of two layers, joined end to end. The solver finds which column reads which
channel. If all channels of the second layer must stay, so must the last 4 columns.

>>> from fxprune.axes.expressions import Cause, Channels, Origin, concat
>>> from fxprune.axes.solver import Solver
>>> first, second = Channels(6, Origin("first", 0)), Channels(4, Origin("second", 0))
>>> solver, columns = Solver(), Channels(10, Origin("linear", 1))
>>> solver.unify(columns, concat([first, second]), Cause("cat", "concatenation"))
>>> solver.resolve(columns)
[first:6 second:4]
>>> solver.pin(second, "it is an output", Cause("output", "output"))
>>> solver.resolve(columns)
[first:6 4]
"""
