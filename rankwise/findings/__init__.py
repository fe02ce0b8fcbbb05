"""From records to statements: differences, bounds, the recommendation, and why."""
