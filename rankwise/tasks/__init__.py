"""What is asked and trained: lm-eval tasks, their requests, and what answers are judged."""
