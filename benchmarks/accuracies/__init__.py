"""Accuracy of pruned networks, measured case by case."""
