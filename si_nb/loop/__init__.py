"""What decides what the model learns next: label, keep, mix, train, measure, store."""
