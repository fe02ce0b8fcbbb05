"""Who does the units of a study: this process, or the tasks of a Ray cluster."""
