"""What the counts say about the rounds to come."""
