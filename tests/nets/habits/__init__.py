"""Habits of real code beside its layers: modes, state, hooks, precision, caches, sizes in Python, names."""
