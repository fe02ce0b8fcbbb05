"""A study as work: what is to be done, in which order, and doing it."""
