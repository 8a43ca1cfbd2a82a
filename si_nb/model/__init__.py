"""What answers: a small GPT, its decoding and its training."""
