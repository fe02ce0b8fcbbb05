"""Prompts as a tree of shared prefixes, read once per adapter."""
