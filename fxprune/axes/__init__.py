"""Axis expressions and the solver that unifies them."""
