"""Every op with a rule, in networks of one op, against an oracle that knows nothing of the pass."""
