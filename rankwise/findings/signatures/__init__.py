"""Failure signatures: what goes wrong at a rank, and what to do next."""
