"""Published pruning results counted again: the papers' networks, counting rules and rows."""
