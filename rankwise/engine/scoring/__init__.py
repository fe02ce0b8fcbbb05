"""Scoring many adapters on one base."""
