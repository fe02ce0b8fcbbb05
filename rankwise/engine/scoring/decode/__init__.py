"""Answers that are written, in one continuous batch."""
