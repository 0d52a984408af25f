"""Tools without knowledge of pruning: lazy imports, copies, paths, progress, files."""
