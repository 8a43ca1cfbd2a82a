"""What was counted, on disk so that nothing is lost and nothing is mixed up."""
