"""What a network costs as a function of its widths: multiply-accumulates, parameters, memory, seconds."""
