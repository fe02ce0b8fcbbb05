"""Configurations of the tools that people train with, in and out."""
