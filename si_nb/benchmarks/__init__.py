"""How fast each part is, beside a plain script."""
