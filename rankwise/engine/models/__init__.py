"""Base models, their adapters and their attention."""
