"""Other pruning libraries, used as their own documentation says."""
