"""Training many adapters, or all weights, on one base."""
