"""What is asked of a model, and what the right answer would be."""
