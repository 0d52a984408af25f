"""What the sweep over whole libraries asks of each network."""
