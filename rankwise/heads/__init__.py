"""Attention heads: what training changed in them, and what they are good for."""
