"""Tools that know nothing of pruning: lazy imports, copies, paths, progress, files."""
