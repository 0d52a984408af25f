"""Tasks that measure the time and the memory of the pass."""
