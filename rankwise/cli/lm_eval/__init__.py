"""rankwise as a model of lm-eval."""
