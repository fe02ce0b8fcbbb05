"""Tasks: their training rows, their requests, and the judging of answers."""
