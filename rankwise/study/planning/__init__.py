"""From a study file to a plan: tasks, runs, passes."""
