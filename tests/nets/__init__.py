"""Arbitrary networks for tests: specifications, a hypothesis strategy, and oracles that share no code with the pass."""
