"""Searches: which trainings a study does next, decided on validation items."""
