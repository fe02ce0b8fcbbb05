"""Scores of models that were trained and scored elsewhere, as the records of a study."""
