"""What a network's channels are: groups that go together, widths that stay, and why."""
