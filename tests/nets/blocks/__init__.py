"""Blocks a network is drawn from: each takes a draft and a value and returns a value of a known layout."""
