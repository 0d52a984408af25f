"""Preparing and timing of networks and of several pruned forms of each."""
